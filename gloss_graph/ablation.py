"""The former name of `gloss_graph.studies`."""

from gloss_graph._internal.moved import moved_names

__getattr__ = moved_names(
    __name__,
    {
        "gloss_graph.studies": [
            "Choice",
            "DESIGNS",
            "Plan",
            "Range",
            "Results",
            "Study",
            "TextRun",
            "read_results",
            "read_study",
            "write_report",
        ]
    },
)
