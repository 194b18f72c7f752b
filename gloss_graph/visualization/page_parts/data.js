"use strict";
// What the page holds: documents, lists of neighbors, columns.
const DATA = JSON.parse(document.getElementById("data").textContent);
const DOCS = DATA.docs;
const SHOWN = DATA.shown;
const EDGES = DATA.edges.from.length;
const FROM = Uint32Array.from(DATA.edges.from);
const TO = Uint32Array.from(DATA.edges.to);
const X = Float64Array.from(DOCS.place, (p) => p[0]);
const Y = Float64Array.from(DOCS.place, (p) => -p[1]);
const LOWER = DOCS.text.map((text) => text.toLowerCase());

const NEAR = Array.from({ length: SHOWN }, () => []);
for (let e = 0; e < EDGES; e++) {
  NEAR[FROM[e]].push([TO[e], DATA.edges.weight[e]]);
  NEAR[TO[e]].push([FROM[e], DATA.edges.weight[e]]);
}
for (const list of NEAR) list.sort((a, b) => b[1] - a[1] || a[0] - b[0]);

// Every column can color the map; the label comes first. The look `missing` is that of no value.
const MODES = DATA.columns;
const LABEL = MODES[0];
for (const mode of MODES) {
  mode.missing = mode.looks.push({ name: mode.missing, color: null, marker: "o" }) - 1;
  mode.hidden = new Set();
  countLooks(mode);
}

function countLooks(mode) {
  mode.look = mode.values.slice(0, SHOWN).map((value) => placeOf(mode, value));
  mode.counts = new Array(mode.looks.length).fill(0);
  for (const look of mode.look) mode.counts[look]++;
}

function placeOf(mode, value) {
  return value < 0 || mode.look_of[value] < 0 ? mode.missing : mode.look_of[value];
}

function lookOfClass(label) {
  return LABEL.looks[placeOf(LABEL, label)];
}

function className(label) {
  return label < 0 ? "unlabeled" : LABEL.names[label];
}

// What a column says of a document, "" for nothing.
function valueOf(mode, i) {
  const value = mode.numbers ? mode.numbers[i] : mode.names[mode.values[i]];
  return value === undefined || value === null ? "" : String(value);
}

function firstLine(i, length) {
  const text = DOCS.text[i].slice(0, 4 * length).replace(/\s+/g, " ").trim();
  return text ? (text.length > length ? text.slice(0, length - 1) + "…" : text) : "(no text)";
}

// Documents whose id is the query come first, then those whose text holds it.
function findDocuments(query) {
  const wanted = query.trim().toLowerCase();
  if (!wanted) return [];
  const exact = [], found = [];
  for (let i = 0; i < DOCS.text.length; i++) {
    if (String(DOCS.id[i]) === wanted.replace(/^#/, "")) exact.push(i);
    else if (LOWER[i].includes(wanted)) found.push(i);
  }
  return exact.concat(found);
}

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  // textContent only: what a document says is never read as HTML.
  if (text !== undefined) node.textContent = text;
  return node;
}

function shape(context, marker, x, y, r) {
  context.beginPath();
  if (marker === "s") context.rect(x - 0.86 * r, y - 0.86 * r, 1.72 * r, 1.72 * r);
  else if (marker === "^") {
    context.moveTo(x, y - 1.1 * r);
    context.lineTo(x + r, y + 0.8 * r);
    context.lineTo(x - r, y + 0.8 * r);
    context.closePath();
  } else if (marker === "D") {
    context.moveTo(x, y - r);
    context.lineTo(x + r, y);
    context.lineTo(x, y + r);
    context.lineTo(x - r, y);
    context.closePath();
  } else context.arc(x, y, r, 0, 2 * Math.PI);
}

function paint(context, look, x, y, r, dark) {
  shape(context, look.marker, x, y, r);
  context.fillStyle = look.color || (dark ? "#14171c" : "#ffffff");
  context.fill();
  context.lineWidth = look.color ? Math.max(0.5, r / 7) : Math.max(1, r / 4);
  context.strokeStyle = look.color ? (dark ? "rgba(255,255,255,0.45)" : "rgba(0,0,0,0.4)") : "#8a9099";
  context.stroke();
}

function swatch(look) {
  const canvas = element("canvas", "swatch");
  canvas.width = canvas.height = 28;
  paint(canvas.getContext("2d"), look, 14, 14, 10, document.documentElement.classList.contains("dark"));
  canvas.setAttribute("aria-hidden", "true");
  return canvas;
}
