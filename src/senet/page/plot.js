// A line chart on a canvas that can be pointed at and moved along with the keyboard.

const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3]];
const COLOURS = 6;
const MARGIN = { left: 46, right: 14, top: 18, bottom: 26 };

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// Colour and dashes of the line in a slot: after six colours the dashes change.
function lineStyle(slot) {
  return { stroke: `--line-${slot % COLOURS}`, dash: DASHES[Math.floor(slot / COLOURS) % DASHES.length] };
}

// Round numbers within [low, high], about as many as asked for.
function niceTicks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((times) => times * power >= rough * 0.999);
  const ticks = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-6; at++) ticks.push(at * step);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return ticks.map((value) => ({ value, text: (value + 0).toFixed(digits) }));
}

class Plot {
  // content() gives what is drawn: {size, lines, bands, y: [low, high], ticks, marks, format};
  // onMove(place or null) and onPick(place) hear of the pointer and of the keys.
  constructor(host, { label, height, content, onMove, onPick, describe }) {
    Object.assign(this, { host, height, content, onMove, onPick, describe });
    this.cursor = null;
    this.pinned = null;
    this.canvas = element("canvas", { "aria-hidden": "true" });
    host.className = "plot";
    host.append(this.canvas);
    for (const [name, value] of Object.entries({
      role: "slider", tabindex: "0", "aria-label": label, "aria-orientation": "horizontal",
      "aria-valuemin": "1",
    })) host.setAttribute(name, value);
    host.addEventListener("pointermove", (event) => this.move(this.placeAt(event.offsetX)));
    host.addEventListener("pointerleave", () => this.move(null));
    host.addEventListener("click", (event) => this.pick(this.placeAt(event.offsetX)));
    host.addEventListener("keydown", (event) => this.key(event));
    host.addEventListener("focus", () => {
      if (this.cursor === null && host.matches(":focus-visible")) this.move(this.pinned ?? 0);
    });
    host.addEventListener("blur", () => this.move(null));
    this.watch = new ResizeObserver(() => this.draw());
    this.watch.observe(host);
    this.refresh();
  }

  // Takes the content anew.
  refresh() {
    this.now = this.content();
    this.cursor = null;
    this.host.setAttribute("aria-valuemax", String(this.now.size));
    this.tell();
    this.draw();
  }

  close() {
    this.watch.disconnect();
  }

  tell() {
    const place = this.cursor ?? this.pinned ?? 0;
    this.host.setAttribute("aria-valuenow", String(place + 1));
    this.host.setAttribute("aria-valuetext", this.describe(place));
  }

  move(place) {
    if (place === this.cursor) return;
    this.cursor = place;
    this.tell();
    this.draw();
    this.onMove(place);
  }

  pick(place) {
    if (place === null) return;
    this.onPick(place);
  }

  key(event) {
    const last = this.now.size - 1;
    const from = this.cursor ?? this.pinned ?? 0;
    const step = event.shiftKey ? 10 : 1;
    const to = {
      ArrowLeft: from - step, ArrowDown: from - step, ArrowRight: from + step, ArrowUp: from + step,
      PageDown: from - 10, PageUp: from + 10, Home: 0, End: last,
    }[event.key];
    if (to !== undefined) this.move(Math.min(last, Math.max(0, to)));
    else if (event.key === "Enter" || event.key === " ") this.pick(from);
    else return;
    event.preventDefault();
  }

  x(place) {
    const { size } = this.now;
    const width = this.width - MARGIN.left - MARGIN.right;
    const inset = this.now.inset ?? 0;
    if (size === 1) return MARGIN.left + width / 2;
    return MARGIN.left + inset + (place / (size - 1)) * (width - 2 * inset);
  }

  placeAt(offset) {
    const { size } = this.now;
    if (size === 1) return 0;
    const first = this.x(0);
    const place = Math.round(((offset - first) / (this.x(size - 1) - first)) * (size - 1));
    return Math.min(size - 1, Math.max(0, place));
  }

  y(value) {
    const [low, high] = this.now.y;
    const height = this.height - MARGIN.top - MARGIN.bottom;
    return MARGIN.top + (1 - (value - low) / (high - low || 1)) * height;
  }

  draw() {
    this.width = this.host.clientWidth;
    if (!this.width) return;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    this.canvas.style.height = `${this.height}px`;
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    this.frame(pen);
    for (const band of this.now.bands) this.band(pen, band);
    for (const line of this.now.lines) this.line(pen, line);
    this.marker(pen, this.pinned, true);
    this.marker(pen, this.cursor, false);
  }

  frame(pen) {
    const [left, right, bottom] = [MARGIN.left, this.width - MARGIN.right, this.height - MARGIN.bottom];
    pen.lineWidth = 1;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (const { value, text } of niceTicks(...this.now.y, this.height > 190 ? 5 : 4)) {
      const y = Math.round(this.y(value)) + 0.5;
      this.rule(pen, left, y, right, y, colour("--rule"));
      pen.fillStyle = colour("--muted");
      pen.fillText(this.now.format ? this.now.format(text) : text, left - 7, y);
    }
    this.rule(pen, left, bottom + 0.5, right, bottom + 0.5, colour("--strong-rule"));
    for (const { between, text } of this.now.marks ?? []) {
      const x = between < 0 ? left : (this.x(between) + this.x(between + 1)) / 2;
      pen.setLineDash([2, 3]);
      if (between >= 0) this.rule(pen, x, 4, x, bottom, colour("--strong-rule"));
      pen.setLineDash([]);
      pen.textAlign = "left";
      pen.fillStyle = colour("--muted");
      pen.fillText(text, x + 4, 8);
    }
    pen.textAlign = "center";
    pen.textBaseline = "top";
    let free = -Infinity;
    for (const { place, text } of this.now.ticks) {
      const half = pen.measureText(text).width / 2;
      const x = Math.min(this.x(place), this.width - half - 1);
      if (x - half < free + 6) continue;
      free = x + half;
      pen.fillStyle = colour("--muted");
      pen.fillText(text, x, bottom + 7);
    }
  }

  rule(pen, x0, y0, x1, y1, stroke) {
    pen.strokeStyle = stroke;
    pen.beginPath();
    pen.moveTo(x0, y0);
    pen.lineTo(x1, y1);
    pen.stroke();
  }

  band(pen, { low, high, edge }) {
    pen.fillStyle = colour("--band");
    pen.globalAlpha = 0.75;
    pen.beginPath();
    let begun = false;
    for (let at = 0; at < high.length; at++) {
      if (Number.isNaN(high[at])) continue;
      if (begun) pen.lineTo(this.x(at), this.y(high[at]));
      else pen.moveTo(this.x(at), this.y(high[at]));
      begun = true;
    }
    for (let at = low.length - 1; at >= 0; at--) {
      if (!Number.isNaN(low[at])) pen.lineTo(this.x(at), this.y(low[at]));
    }
    pen.fill();
    pen.globalAlpha = 1;
    if (edge) this.line(pen, { values: high, stroke: "--muted", dash: [4, 3], width: 1 });
  }

  line(pen, { values, stroke, dash, width, dots }) {
    pen.strokeStyle = pen.fillStyle = colour(stroke);
    pen.lineWidth = width ?? 1.6;
    pen.lineJoin = "round";
    pen.setLineDash(dash ?? []);
    pen.beginPath();
    let begun = false;
    for (let at = 0; at < values.length; at++) {
      const known = !Number.isNaN(values[at]);
      if (known && begun) pen.lineTo(this.x(at), this.y(values[at]));
      else if (known) pen.moveTo(this.x(at), this.y(values[at]));
      begun = known;
    }
    pen.stroke();
    pen.setLineDash([]);
    if (!dots) return;
    for (let at = 0; at < values.length; at++) {
      if (Number.isNaN(values[at])) continue;
      pen.beginPath();
      pen.arc(this.x(at), this.y(values[at]), 3.4, 0, 2 * Math.PI);
      pen.fill();
    }
  }

  // Where one is: a line through all values, with a dot on each; the chosen place a heavier one.
  marker(pen, place, pinned) {
    if (place === null || place >= this.now.size) return;
    const x = this.x(place);
    pen.lineWidth = pinned ? 2 : 1;
    this.rule(pen, x, MARGIN.top - 4, x, this.height - MARGIN.bottom, colour(pinned ? "--accent" : "--ink"));
    if (pinned) return;
    for (const { values, stroke } of this.now.lines) {
      if (Number.isNaN(values[place])) continue;
      pen.fillStyle = colour(stroke);
      pen.strokeStyle = colour("--card");
      pen.lineWidth = 1.5;
      pen.beginPath();
      pen.arc(x, this.y(values[place]), 4, 0, 2 * Math.PI);
      pen.fill();
      pen.stroke();
    }
  }
}
