// The map: edges are drawn into a bitmap, a share a frame, which stands in while the view moves;
// dots are drawn afresh, or with the edges from a picture of the last still frame where that is slow.
const CANVAS = document.getElementById("map");
const PEN = CANVAS.getContext("2d", { alpha: false });
const LEAST = 300, MOST = 4000, PATH = 120, SLOW = 10;
const state = {
  mode: MODES[0], selected: -1, over: -1, dark: false, scale: 1, left: 0, top: 0,
  width: 1, height: 1, ratio: 1, waiting: false,
  chosen: new Set(), tool: "pan", outline: null,
};
const stats = { frames: 0, draw: 0, longest: 0, full: 0 };
const layer = {
  ready: null, back: document.createElement("canvas"), next: 0, order: null, timer: 0, chunk: 1200,
  round: 0, at: 0,
};
const still = { canvas: document.createElement("canvas"), view: null };

function screenX(i) { return X[i] * state.scale + state.left; }
function screenY(i) { return Y[i] * state.scale + state.top; }
function visible(i) { return !state.mode.hidden.has(state.mode.look[i]); }
function radius() {
  const base = Math.min(5.2, Math.max(2.2, 150 / Math.sqrt(Math.max(SHOWN, 1))));
  return base * Math.min(2.6, Math.max(0.8, Math.pow(state.scale / state.fitted, 0.4)));
}

function requestDraw() {
  if (state.waiting) return;
  state.waiting = true;
  requestAnimationFrame(() => {
    state.waiting = false;
    const start = performance.now();
    draw();
    stats.draw = performance.now() - start;
    stats.longest = Math.max(stats.longest, stats.draw);
    stats.frames++;
  });
}

// Forget the bitmap when what it shows changed, keep it as a stand-in when only the view did.
function edgesChanged(dropOld) {
  if (dropOld) layer.ready = still.view = null;
  layer.order = null;
  clearTimeout(layer.timer);
  layer.timer = setTimeout(() => {
    layer.timer = 0;
    startEdges();
    requestDraw();
  }, dropOld ? 0 : 140);
  requestDraw();
}

function startEdges() {
  const look = state.mode.look;
  const kept = [];
  const w = state.width, h = state.height;
  for (let e = 0; e < EDGES; e++) {
    const i = FROM[e], j = TO[e];
    if (!visible(i) || !visible(j)) continue;
    const a = screenX(i), b = screenX(j), c = screenY(i), d = screenY(j);
    if ((a < 0 && b < 0) || (a > w && b > w) || (c < 0 && d < 0) || (c > h && d > h)) continue;
    kept.push(e);
  }
  const open = state.mode.missing;
  const between = (e) => state.mode.word && look[FROM[e]] !== look[TO[e]] &&
    look[FROM[e]] !== open && look[TO[e]] !== open;
  layer.order = kept.filter((e) => !between(e));
  layer.split = layer.order.length;
  for (const e of kept) if (between(e)) layer.order.push(e);
  layer.next = 0;
  layer.view = { scale: state.scale, left: state.left, top: state.top };
  layer.back.width = CANVAS.width;
  layer.back.height = CANVAS.height;
  layer.at = 0;
  const round = ++layer.round;
  const turn = (now) => {
    if (!layer.order || layer.round !== round) return;
    // As many edges a frame as frames stay short with.
    if (layer.at) layer.chunk *= now - layer.at > 28 ? 0.6 : 1.25;
    layer.chunk = Math.min(MOST, Math.max(LEAST, layer.chunk));
    layer.at = now;
    continueEdges();
    if (layer.order) requestAnimationFrame(turn);
    else requestDraw();
  };
  requestAnimationFrame(turn);
}

function continueEdges() {
  const pen = layer.back.getContext("2d");
  pen.setTransform(state.ratio, 0, 0, state.ratio, 0, 0);
  // Many edges share the ink of a few, so a dense graph does not turn into a blot.
  const ink = Math.min(0.55, Math.max(0.1, 14 / Math.sqrt(Math.max(layer.order.length, 1))));
  const stop = Math.min(layer.next + Math.round(layer.chunk), layer.order.length);
  pen.lineWidth = 0.8;
  while (layer.next < stop) {
    const within = layer.next < layer.split;
    const end = Math.min(layer.next + PATH, stop, within ? layer.split : stop);
    pen.strokeStyle = within ? (state.dark ? "#a9b1bb" : "#6f7781") : (state.dark ? "#ff6f91" : "#b3123c");
    pen.globalAlpha = within ? ink : 0.8 * ink;
    pen.beginPath();
    for (; layer.next < end; layer.next++) {
      const e = layer.order[layer.next];
      pen.moveTo(screenX(FROM[e]), screenY(FROM[e]));
      pen.lineTo(screenX(TO[e]), screenY(TO[e]));
    }
    pen.stroke();
  }
  if (layer.next < layer.order.length) return;
  const old = layer.ready ? layer.ready.canvas : document.createElement("canvas");
  layer.ready = { canvas: layer.back, view: layer.view };
  layer.back = old;
  layer.order = null;
}

const sprites = { key: "", made: [] };
function dots(r) {
  const key = [state.mode.name, state.mode.looks.length, state.dark, r.toFixed(2), state.ratio].join();
  if (sprites.key !== key) {
    const half = Math.ceil(1.3 * r * state.ratio) + 1;
    sprites.key = key;
    sprites.half = half;
    sprites.made = state.mode.looks.map((look) => {
      const canvas = document.createElement("canvas");
      canvas.width = canvas.height = 2 * half;
      paint(canvas.getContext("2d"), look, half, half, r * state.ratio, state.dark);
      return canvas;
    });
  }
  return sprites;
}

function draw() {
  const { width, height, ratio } = state;
  PEN.setTransform(1, 0, 0, 1, 0, 0);
  PEN.globalAlpha = 1;
  PEN.fillStyle = state.dark ? "#14171c" : "#ffffff";
  PEN.fillRect(0, 0, CANVAS.width, CANVAS.height);
  if (layer.timer && still.view && stats.full > SLOW) return drawMoved(still);
  const start = performance.now();
  const open = state.selected >= 0 && state.selected < SHOWN && visible(state.selected);
  // Documents that are not dimmed: those selected, else the open one and its neighbors.
  let lit = state.chosen.size ? state.chosen : null;
  if (open && !lit) lit = new Set([state.selected, ...NEAR[state.selected].map((pair) => pair[0])]);
  if (layer.ready) {
    PEN.globalAlpha = lit ? 0.3 : 1;
    drawMoved(layer.ready);
  }
  PEN.setTransform(ratio, 0, 0, ratio, 0, 0);
  const r = radius();
  if (open) drawStar(r);
  const { made, half } = dots(r);
  PEN.setTransform(1, 0, 0, 1, 0, 0);
  for (const bright of lit ? [false, true] : [true]) {
    PEN.globalAlpha = bright ? 1 : 0.28;
    for (let i = 0; i < SHOWN; i++) {
      if (lit && bright !== lit.has(i)) continue;
      if (!visible(i)) continue;
      const x = screenX(i), y = screenY(i);
      if (x < -20 || y < -20 || x > width + 20 || y > height + 20) continue;
      PEN.drawImage(made[state.mode.look[i]], Math.round(x * ratio) - half, Math.round(y * ratio) - half);
    }
  }
  PEN.setTransform(ratio, 0, 0, ratio, 0, 0);
  PEN.globalAlpha = 1;
  for (const i of [state.over, state.selected]) {
    if (i < 0 || i >= SHOWN || !visible(i)) continue;
    PEN.beginPath();
    PEN.arc(screenX(i), screenY(i), r + 4, 0, 2 * Math.PI);
    PEN.lineWidth = 2.2;
    PEN.strokeStyle = state.dark ? "#ffffff" : "#111111";
    PEN.stroke();
  }
  if (state.outline) drawOutline();
  stats.full = performance.now() - start;
  if (layer.timer || layer.order || state.outline) return;
  still.canvas.width = CANVAS.width;
  still.canvas.height = CANVAS.height;
  still.canvas.getContext("2d").drawImage(CANVAS, 0, 0);
  still.view = { scale: state.scale, left: state.left, top: state.top };
}

// A bitmap of an earlier view, moved and scaled to where it lies in this one.
function drawMoved({ view, canvas }) {
  const k = state.scale / view.scale, ratio = state.ratio;
  PEN.setTransform(k, 0, 0, k, (state.left - k * view.left) * ratio, (state.top - k * view.top) * ratio);
  PEN.drawImage(canvas, 0, 0);
}

// Edges of the chosen document over the others, the heavier the thicker.
function drawStar(r) {
  const i = state.selected;
  const top = NEAR[i].length ? NEAR[i][0][1] : 1;
  PEN.strokeStyle = state.dark ? "#e8eaed" : "#333333";
  for (const [j, weight] of NEAR[i]) {
    if (!visible(j)) continue;
    PEN.globalAlpha = 0.35 + 0.5 * (weight / top);
    PEN.lineWidth = 0.6 + 1.8 * (weight / top);
    PEN.beginPath();
    PEN.moveTo(screenX(i), screenY(i));
    PEN.lineTo(screenX(j), screenY(j));
    PEN.stroke();
  }
}

function outlinePath() {
  const path = new Path2D();
  for (const [x, y] of state.outline) path.lineTo(x, y);
  path.closePath();
  return path;
}

function drawOutline() {
  const path = outlinePath();
  PEN.fillStyle = PEN.strokeStyle = state.dark ? "#56b4e9" : "#0072b2";
  PEN.globalAlpha = 0.12;
  PEN.fill(path);
  PEN.globalAlpha = 1;
  PEN.lineWidth = 1.5;
  PEN.stroke(path);
}

// Documents that the legend shows, those within the outline if there is one.
function documentsWithin(outline) {
  const path = outline && outlinePath();
  PEN.setTransform(1, 0, 0, 1, 0, 0);
  return [...Array(SHOWN).keys()].filter(
    (i) => visible(i) && (!path || PEN.isPointInPath(path, screenX(i), screenY(i))));
}

function documentAt(x, y) {
  let best = -1, least = Math.max(9, radius() + 3) ** 2;
  for (let i = 0; i < SHOWN; i++) {
    if (!visible(i)) continue;
    const d = (screenX(i) - x) ** 2 + (screenY(i) - y) ** 2;
    if (d <= least) { best = i; least = d; }
  }
  return best;
}

function zoom(factor, x, y) {
  const next = Math.min(200 * state.fitted, Math.max(0.3 * state.fitted, state.scale * factor));
  const k = next / state.scale;
  state.left = x - k * (x - state.left);
  state.top = y - k * (y - state.top);
  state.scale = next;
  edgesChanged(false);
}

function pan(dx, dy) {
  state.left += dx;
  state.top += dy;
  edgesChanged(false);
}

function fit() {
  let low = [Infinity, Infinity], high = [-Infinity, -Infinity];
  for (let i = 0; i < SHOWN; i++) {
    low = [Math.min(low[0], X[i]), Math.min(low[1], Y[i])];
    high = [Math.max(high[0], X[i]), Math.max(high[1], Y[i])];
  }
  if (!SHOWN) { low = [-1, -1]; high = [1, 1]; }
  // The legend keeps its place, at the left or at the foot.
  const legend = byId("legend").getBoundingClientRect();
  const beside = legend.width < 0.7 * state.width;
  const margin = beside ? legend.right : 20, foot = beside ? 48 : state.height - legend.top + 12;
  const top = byId("head").getBoundingClientRect().bottom;
  const w = Math.max(state.width - margin - 40, 60), h = Math.max(state.height - top - foot, 60);
  state.scale = Math.min(w / Math.max(high[0] - low[0], 0.2), h / Math.max(high[1] - low[1], 0.2));
  state.fitted = state.scale;
  state.left = margin + 10 + w / 2 - (state.scale * (low[0] + high[0])) / 2;
  state.top = top + h / 2 - (state.scale * (low[1] + high[1])) / 2;
  edgesChanged(!layer.ready);
}

function center(i) {
  if (i >= SHOWN) return;
  const x = screenX(i), y = screenY(i);
  if (x > 40 && y > 40 && x < state.width - 40 && y < state.height - 40) return;
  pan(state.width / 2 - x, state.height / 2 - y);
}

function resize() {
  const box = CANVAS.parentElement.getBoundingClientRect();
  state.width = Math.max(box.width, 1);
  state.height = Math.max(box.height, 1);
  state.ratio = Math.min(window.devicePixelRatio || 1, 2);
  CANVAS.width = Math.round(state.width * state.ratio);
  CANVAS.height = Math.round(state.height * state.ratio);
}
