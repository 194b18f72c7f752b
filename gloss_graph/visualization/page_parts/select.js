// Selected documents, corrected labels, and the tables that are saved.
const GIVEN = LABEL.values.slice();
let unsaved = false;

function cell(value) { return '"' + String(value).replaceAll('"', '""') + '"'; }

function saveTable(name, head, rows) {
  const lines = [head, ...rows].map((row) => row.map(cell).join(",") + "\n");
  // Spreadsheets know UTF-8 by the mark at the start.
  const url = URL.createObjectURL(new Blob(["\ufeff", ...lines], { type: "text/csv" }));
  Object.assign(element("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

function saveSelection() {
  const rows = [...state.chosen].sort((a, b) => a - b)
    .map((i) => [DOCS.id[i], DOCS.text[i], ...MODES.map((mode) => valueOf(mode, i))]);
  saveTable("selection.csv", ["id", "text", ...MODES.map((mode) => mode.name)], rows);
}

function saveLabels() {
  saveTable("labels.csv", ["id", "text", "label"],
    DOCS.id.map((id, i) => [id, DOCS.text[i], valueOf(LABEL, i)]));
  unsaved = false;
}

function choose(documents, add) {
  state.chosen = new Set(add ? [...state.chosen, ...documents] : documents);
  showChosen();
  if (state.selected < 0) showPanel(-1);
  requestDraw();
}

// A class that the graph does not know gets a look of its own.
function classNumber(name) {
  const known = LABEL.names.indexOf(name);
  if (known >= 0) return known;
  const number = LABEL.names.push(name) - 1;
  const color = DATA.palette[number % DATA.palette.length];
  LABEL.look_of.push(LABEL.looks.push({ name, color, marker: "D", added: true }) - 1);
  return number;
}

function setLabels(documents, labelOf) {
  for (const i of documents) LABEL.values[i] = labelOf(i);
  unsaved = true;
  countLooks(LABEL);
  showClasses();
  showLegend();
  showChosen();
  showPanel(state.selected);
  showCorrections();
  edgesChanged(true);
}

// The form that corrects the label of one document or of all selected ones.
function labelForm(id, documents) {
  const form = element("form", "correct"), input = element("input"), name = element("label", "", "Correct label");
  form.id = id;
  name.htmlFor = input.id = id + "-class";
  input.placeholder = "class";
  input.autocomplete = "off";
  input.setAttribute("list", "classes");
  const act = (title, labelOf, type) => {
    const button = element("button", "", title);
    button.type = type || "button";
    if (!type) button.addEventListener("click", () => finish(labelOf));
    return button;
  };
  const finish = (labelOf) => {
    setLabels(documents, labelOf);
    byId(id + "-class").focus();
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const typed = input.value.trim();
    if (!typed) return input.focus();
    const label = classNumber(typed);
    finish(() => label);
  });
  form.append(name, input, act("Set", null, "submit"), act("Remove", () => -1));
  if (documents.some((i) => LABEL.values[i] !== GIVEN[i])) form.append(act("Undo", (i) => GIVEN[i]));
  return form;
}

function showClasses() {
  byId("classes").replaceChildren(...LABEL.names.map((name) => Object.assign(element("option"), { value: name })));
}

function showChosen() {
  const documents = [...state.chosen], box = byId("chosen");
  box.hidden = !documents.length;
  byId("said").textContent = documents.length ? counted(documents.length, "document") + " selected" : "";
  if (!documents.length) return box.replaceChildren();
  const mode = state.mode, counts = new Map();
  for (const i of documents) counts.set(mode.look[i], (counts.get(mode.look[i]) || 0) + 1);
  const parts = [...counts].sort((a, b) => b[1] - a[1]).map(([look, n]) => mode.looks[look].name + ": " + format(n));
  const rest = parts.length > 5 ? ` · ${parts.length - 5} more` : "";
  const buttons = element("p", "buttons");
  for (const [title, action] of [["Save as CSV", saveSelection], ["Clear", () => choose([])]]) {
    const button = Object.assign(element("button", "", title), { type: "button" });
    button.addEventListener("click", action);
    buttons.append(button);
  }
  box.replaceChildren(element("h2", "", byId("said").textContent),
    element("p", "note", mode.name + " · " + parts.slice(0, 5).join(" · ") + rest),
    labelForm("correct-all", documents), buttons);
}

function showCorrections() {
  const changed = [...GIVEN.keys()].filter((i) => LABEL.values[i] !== GIVEN[i]);
  const added = LABEL.looks.filter((look, n) => look.added && LABEL.counts[n]).map((look) => look.name);
  byId("corrections").hidden = !changed.length;
  unsaved = unsaved && changed.length > 0;
  byId("corrected").textContent = counted(changed.length, "corrected label") +
    (added.length ? " · new classes: " + added.join(", ") : "");
  const notes = ["All documents with their labels, a file for gloss-graph train."];
  if (SHOWN < DATA.total) notes.push("This page holds only a sample of them.");
  if (DATA.max_text) notes.push(`Texts are cut at ${format(DATA.max_text)} characters, as in this page.`);
  if (GIVEN.some((label, i) => label >= 0 && !DOCS.seed[i])) {
    notes.push("Labels that were hidden from the propagation, such as those of a test part, are in it.");
  }
  byId("labels-note").textContent = notes.join(" ");
}

function useTool(tool) {
  state.tool = tool;
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
  }
  CANVAS.classList.toggle("drawing", tool !== "pan");
}

// The outline of a box or lasso grows with the pointer.
function growOutline(tool, start, here) {
  if (tool === "box") state.outline = [start, [here[0], start[1]], here, [start[0], here[1]]];
  else (state.outline = state.outline || [start]).push(here);
  requestDraw();
}
