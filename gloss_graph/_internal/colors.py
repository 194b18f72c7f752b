"""The colors that pictures and exported graphs share."""

#: Okabe & Ito (2008) with a dark violet for their black; yellow last, it is weak on white.
PALETTE = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#4B2E83",
    "#F0E442",
)
INK = "#222222"
GREY = "#9AA0A6"
CONTRAST = "#B3123C"
