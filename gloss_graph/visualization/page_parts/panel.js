// Search, the panel of a document, the legend, and what hands do.
const MEANING = {
  propagated: "The class that the labels of other documents give.",
  community: "Groups that the edges form, found without labels (Louvain).",
  suspicion: "How far the other labels contradict the label: 0 not at all, 1 all of them.",
  confidence: "Share of the propagated class among the labels that arrive.",
  neighbors: "Number of documents that an edge joins to it.",
};
const byId = (id) => document.getElementById(id);
const format = (value) => value.toLocaleString("en");
const counted = (n, word) => format(n) + " " + word + (n === 1 ? "" : "s");
const percent = (value) => (100 * value).toFixed(value < 0.0995 ? 1 : 0) + " %";

function documentRow(i, value = "#" + DOCS.id[i], bar, snippet) {
  const item = element("li");
  const button = element("button", "row");
  button.type = "button";
  const top = element("span", "top");
  top.append(swatch(lookOfClass(LABEL.values[i])), element("span", "kind", className(LABEL.values[i])));
  top.append(element("span", "value", value));
  const line = element("span", "snip");
  if (snippet) line.append(...snippet);
  else line.textContent = firstLine(i, 90);
  button.append(top, line);
  if (bar !== undefined) {
    const mark = element("span", "bar");
    mark.style.width = Math.max(1, 100 * bar) + "%";
    button.append(mark);
  }
  button.addEventListener("click", () => select(i, true));
  item.append(button);
  return item;
}

// Where the text holds the query, with a mark around it.
function snippetOf(i, query) {
  const wanted = query.trim().toLowerCase();
  const at = LOWER[i].indexOf(wanted);
  // Lower case may be longer than the text; then positions disagree and no mark is set.
  if (at < 0 || LOWER[i].length !== DOCS.text[i].length) return null;
  const start = Math.max(0, at - 28), text = DOCS.text[i];
  return [
    (start ? "…" : "") + text.slice(start, at),
    element("mark", "", text.slice(at, at + wanted.length)),
    text.slice(at + wanted.length, at + wanted.length + 90),
  ];
}

function search() {
  const query = byId("query").value;
  const found = findDocuments(query);
  byId("hits").replaceChildren(
    ...found.slice(0, 50).map((i) => documentRow(i, undefined, undefined, snippetOf(i, query))),
  );
  const more = found.length > 50 ? ", the first 50 below" : "";
  byId("count").textContent = query.trim()
    ? counted(found.length, "document") + more : "";
  byId("select-hits").hidden = !found.length;
  return found;
}

function select(i, move) {
  state.selected = i;
  showPanel(i);
  if (i >= 0 && move) center(i);
  requestDraw();
}

function fact(list, name, value, look, clash) {
  const cell = element("dd", clash ? "clash" : "");
  if (look) cell.append(swatch(look));
  cell.append(element("span", "", value));
  list.append(element("dt", "", name), cell);
}

function showPanel(i) {
  const panel = byId("panel");
  panel.replaceChildren();
  if (i < 0) return panel.append(...(state.chosen.size ? listChosen() : welcome()));
  panel.append(element("h2", "", "Document #" + DOCS.id[i]));
  const facts = element("dl");
  const label = LABEL.values[i], onMap = i < SHOWN;
  const note = label !== GIVEN[i] ? ` (was ${className(GIVEN[i])})`
    : label < 0 || DOCS.seed[i] ? "" : " (hidden from the propagation)";
  fact(facts, LABEL.name, className(label) + note, lookOfClass(label));
  for (const mode of onMap ? MODES.slice(1) : []) {
    const value = valueOf(mode, i), other = mode.name === "propagated" && label >= 0 && value;
    fact(facts, mode.name, value || mode.looks[mode.missing].name,
      mode.word ? mode.looks[mode.look[i]] : null, other && value !== className(label));
  }
  if (!onMap) fact(facts, "neighbors", format(DOCS.degree[i]));
  panel.append(element("p", "text", DOCS.text[i] || "(no text)"), labelForm("correct-one", [i]), facts);
  if (!onMap) return panel.append(element("p", "note", "Not on the map, which shows a sample."));
  if (DATA.masses) panel.append(...reasons(i));
  const others = NEAR[i].length < DOCS.degree[i] ? ` (${NEAR[i].length} of ${DOCS.degree[i]} on the map)` : "";
  panel.append(element("h3", "", "Neighbors" + others));
  if (!NEAR[i].length) panel.append(element("p", "note", "None."));
  const list = element("ul", "list");
  const top = NEAR[i].length ? NEAR[i][0][1] : 1;
  for (const [j, weight] of NEAR[i].slice(0, 200)) {
    list.append(documentRow(j, "weight " + weight.toPrecision(3), weight / top));
  }
  panel.append(list);
}

function reasons(i) {
  const { by, mass, classes } = DATA.masses;
  const total = classes[i].reduce((sum, value) => sum + value, 0);
  const parts = [element("h3", "", DOCS.seed[i] ? "What the other labels say" : "Who decides")];
  if (!by[i].length) {
    parts.push(element("p", "note", "No other labeled document reaches it."));
    return parts;
  }
  const ranked = classes[i].map((value, c) => [value, c]).filter((pair) => pair[0] / total >= 0.005);
  ranked.sort((a, b) => b[0] - a[0]);
  const text = ranked.slice(0, 4).map(([value, c]) => className(c) + ": " + percent(value / total)).join(" · ");
  const leaked = total < 0.9995 ? ` ${percent(1 - total)} of the walks end without a label.` : "";
  parts.push(element("p", "note", text));
  parts.push(element("p", "note",
    "Chance that a walk from here ends in the labeled document, exact" +
    (DOCS.seed[i] ? ", with its label hidden." : ".") + leaked));
  const list = element("ul", "list");
  by[i].forEach((j, n) => list.append(documentRow(j, percent(mass[i][n]), mass[i][n] / mass[i][0])));
  const rest = total - mass[i].reduce((sum, value) => sum + value, 0);
  parts.push(list);
  if (rest > 0.0005) parts.push(element("p", "note", percent(rest) + " in other labeled documents."));
  return parts;
}

function welcome() {
  return [
    element("h2", "", "No document chosen"),
    element("p", "note", "Click a dot, or search above. Neighbors lie close together; distances " +
      "between far groups mean nothing. The legend switches groups off."),
    element("p", "note", "Box and Lasso select documents, Shift adds to them; their labels can be " +
      "corrected, and the selection saved as CSV. Ctrl+A on the map selects all that it shows."),
  ];
}

function listChosen() {
  const documents = [...state.chosen].sort((a, b) => a - b), list = element("ul", "list");
  list.append(...documents.slice(0, 200).map((i) => documentRow(i)));
  const rest = documents.length - 200;
  return rest > 0 ? [list, element("p", "note", counted(rest, "more document") + ".")] : [list];
}

function showLegend() {
  const mode = state.mode;
  byId("looks").replaceChildren(...mode.looks.flatMap((look, n) => {
    if (!mode.counts[n]) return [];
    const item = element("li"), button = element("button");
    const name = element("span", "name", look.name);
    if (look.words) name.append(element("small", "words", look.words));
    button.type = "button";
    button.setAttribute("aria-pressed", String(!mode.hidden.has(n)));
    button.append(swatch(look), name, element("span", "number", format(mode.counts[n])));
    button.addEventListener("click", () => {
      if (!mode.hidden.delete(n)) mode.hidden.add(n);
      button.setAttribute("aria-pressed", String(!mode.hidden.has(n)));
      edgesChanged(true);
    });
    item.append(button);
    return [item];
  }));
  byId("meaning").textContent = Object.hasOwn(MEANING, mode.name) ? MEANING[mode.name] : "";
  byId("edge-key").hidden = !mode.word;
  if (!mode.word) return;
  byId("within-text").textContent = "edge within a " + mode.word[0];
  byId("between-text").textContent = "edge between " + mode.word[1];
}

function setTheme(dark) {
  state.dark = dark;
  document.documentElement.classList.toggle("dark", dark);
  byId("theme").textContent = dark ? "Light" : "Dark";
  showLegend();
  showPanel(state.selected);
  edgesChanged(true);
}

function showTip(event, i) {
  const tip = byId("tip");
  tip.hidden = i < 0;
  if (i < 0) return;
  tip.textContent = className(LABEL.values[i]) + " · " + firstLine(i, 110);
  const x = Math.min(event.offsetX + 14, state.width - 340);
  tip.style.left = Math.max(4, x) + "px";
  tip.style.top = Math.min(event.offsetY + 16, state.height - 70) + "px";
}

function listen() {
  const held = new Map();
  let moved = 0, start = null, tool = "pan";
  CANVAS.addEventListener("pointerdown", (event) => {
    CANVAS.setPointerCapture(event.pointerId);
    held.set(event.pointerId, [event.offsetX, event.offsetY]);
    moved = held.size > 1 ? 99 : 0;
    start = [event.offsetX, event.offsetY];
    tool = state.tool === "pan" && event.shiftKey ? "box" : state.tool;
  });
  CANVAS.addEventListener("pointermove", (event) => {
    const last = held.get(event.pointerId), here = [event.offsetX, event.offsetY];
    if (!last) {
      const over = documentAt(...here);
      CANVAS.classList.toggle("over", over >= 0);
      showTip(event, over);
      if (over !== state.over) { state.over = over; requestDraw(); }
      return;
    }
    const other = [...held].find(([id]) => id !== event.pointerId);
    moved += Math.hypot(here[0] - last[0], here[1] - last[1]);
    if (other) {
      state.outline = null;
      const [x, y] = other[1];
      const before = Math.hypot(last[0] - x, last[1] - y), after = Math.hypot(here[0] - x, here[1] - y);
      zoom(after / Math.max(before, 1), (here[0] + x) / 2, (here[1] + y) / 2);
    } else if (moved > 4) {
      showTip(event, -1);
      if (tool === "pan") {
        CANVAS.classList.add("moving");
        pan(here[0] - last[0], here[1] - last[1]);
      } else if (tool !== "none") growOutline(tool, start, here);
    }
    held.set(event.pointerId, here);
  });
  const release = (event) => {
    if (held.delete(event.pointerId) && event.type === "pointerup" && moved <= 4) {
      select(documentAt(event.offsetX, event.offsetY), false);
    }
    if (state.outline && event.type === "pointerup") choose(documentsWithin(true), event.shiftKey);
    state.outline = null;
    requestDraw();
    CANVAS.classList.remove("moving");
  };
  CANVAS.addEventListener("pointerup", release);
  CANVAS.addEventListener("pointercancel", release);
  CANVAS.addEventListener("pointerleave", (event) => { showTip(event, -1); state.over = -1; requestDraw(); });
  CANVAS.addEventListener("wheel", (event) => {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 18 : 1;
    zoom(Math.exp(-0.0016 * lines * Math.max(-240, Math.min(240, event.deltaY))), event.offsetX, event.offsetY);
  }, { passive: false });
  CANVAS.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
    if (steps[event.key]) pan(...steps[event.key]);
    else if (event.key === "+" || event.key === "=") zoom(1.25, state.width / 2, state.height / 2);
    else if (event.key === "-") zoom(0.8, state.width / 2, state.height / 2);
    else if (event.key === "0") fit();
    else if (event.key === "a" && (event.ctrlKey || event.metaKey)) choose(documentsWithin(false));
    else return;
    event.preventDefault();
  });
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const found = search();
    if (found.length) select(found[0], true);
  });
  byId("query").addEventListener("input", search);
  byId("select-hits").addEventListener("click", () => {
    choose(findDocuments(byId("query").value).filter((i) => i < SHOWN));
  });
  byId("search").addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const stops = [byId("query"), ...byId("hits").querySelectorAll("button")];
    const at = stops.indexOf(document.activeElement) + step;
    stops[Math.max(0, Math.min(stops.length - 1, at))].focus();
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    const typing = document.activeElement.tagName === "INPUT", query = byId("query");
    if (event.key === "/" && !typing) { query.focus(); query.select(); event.preventDefault(); }
    if (event.key !== "Escape") return;
    if (state.outline) { state.outline = null; tool = "none"; requestDraw(); }
    else if (document.activeElement === query && query.value) { query.value = ""; search(); }
    else if (state.selected >= 0) select(-1, false);
    else choose([]);
  });
  byId("mode").addEventListener("change", () => {
    state.mode = MODES[byId("mode").selectedIndex];
    showLegend();
    showChosen();
    edgesChanged(true);
  });
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.addEventListener("click", () => useTool(button.dataset.tool));
  }
  byId("save-labels").addEventListener("click", saveLabels);
  window.addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });
  byId("zoom-in").addEventListener("click", () => zoom(1.4, state.width / 2, state.height / 2));
  byId("zoom-out").addEventListener("click", () => zoom(1 / 1.4, state.width / 2, state.height / 2));
  byId("fit").addEventListener("click", fit);
  byId("theme").addEventListener("click", () => setTheme(!state.dark));
  window.addEventListener("resize", () => { resize(); fit(); });
}

byId("title").textContent = DATA.title;
byId("facts").textContent =
  (SHOWN < DATA.total ? format(SHOWN) + " of " + format(DATA.total) + " documents (random-walk sample)"
    : counted(SHOWN, "document")) +
  " · " + counted(EDGES, "edge") + " · " + counted(DOCS.seed.slice(0, SHOWN).filter(Boolean).length, "visible label");
byId("mode").append(...MODES.map((mode) => element("option", "", mode.name)));
showClasses();
listen();
resize();
useTool("pan");
showLegend();
fit();
setTheme(window.matchMedia("(prefers-color-scheme: dark)").matches);
// For tests and for the console: where documents are, how long frames take.
window.documentGraph = { state, stats, layer, select, choose, pan, zoom, fit, place: (i) => [screenX(i), screenY(i)] };
