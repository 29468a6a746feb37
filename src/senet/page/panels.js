// The mean gate of the chosen classes over channels: a chart for each chosen block.

// state: {sort, extent, range, relative, fit, classes: [{place, name, slot}], pinned: {block, channel}}
class Panel {
  constructor(block, state, onPick) {
    Object.assign(this, { block, state });
    this.facts = element("span", { className: "facts" });
    const chart = element("div");
    this.readout = element("p", { className: "readout", role: "status", "aria-live": "polite" });
    const heading = element("h3", { title: block.path }, `${block.name} `, this.facts);
    this.root = element("div", { className: "panel", "data-block": block.name }, heading, chart, this.readout);
    this.plot = new Plot(chart, {
      label: `Mean gate by channel, ${block.name}`, height: 200, content: () => this.content(),
      describe: (place) => `channel ${this.drawn[place]}, ${place + 1} of ${this.drawn.length}`,
      onMove: (place) => this.tell(place),
      onPick: (place) => onPick(block, this.drawn[place]),
    });
    this.refresh();
  }

  channels() {
    const { sort, extent, pinned } = this.state;
    const order = this.block.order(sort);
    if (extent === "all") return order;
    const drawn = new Set(extent === "even" ? spread(order, SAMPLE) : order.slice(0, SAMPLE));
    if (pinned?.block === this.block) drawn.add(pinned.channel); // what is looked at stays in sight
    return order.filter((channel) => drawn.has(channel));
  }

  content() {
    const { block, state } = this;
    this.drawn = this.channels();
    const total = block.values("mean");
    const pick = (values) => Float32Array.from(this.drawn,
      (channel) => values[channel] - (state.relative ? total[channel] : 0));
    const width = this.drawn.length > 150 ? 1 : 1.5;
    const lines = state.classes.map(({ place, slot }) => ({
      values: pick(block.means(place)), ...lineStyle(slot), width,
    }));
    lines.push({ values: pick(total), stroke: "--all", width: width + 0.6 });
    const bands = state.range
      ? [{ low: pick(block.values("lowest")), high: pick(block.values("highest")) }] : [];
    const inOrder = state.sort === "index";
    const step = Math.max(1, Math.ceil(this.drawn.length / 12));
    const ticks = [];
    for (let place = 0; place < this.drawn.length; place += step) {
      ticks.push({ place, text: String(inOrder ? this.drawn[place] : place + 1) });
    }
    return { size: this.drawn.length, lines, bands, ticks, y: this.scale(lines, bands), inset: 4 };
  }

  scale(lines, bands) {
    const fit = this.state.fit || this.state.relative;
    let [low, high] = fit ? [Infinity, -Infinity] : [0, 1];
    for (const values of [...lines.map((line) => line.values), ...bands.flatMap((b) => [b.low, b.high])]) {
      for (const value of values) {
        if (value < low) low = value;
        if (value > high) high = value;
      }
    }
    if (!(low <= high)) return [0, 1];
    const margin = fit ? 0.05 * (high - low) || 0.01 : 0;
    return [low - margin, high + margin];
  }

  refresh() {
    this.plot.refresh();
    const { entry, channels } = this.block;
    const names = { index: "number", specificity: "specificity, highest first",
      mean: "mean gate, highest first", deviation: "spread over images, highest first" };
    const few = this.drawn.length < channels ? `${this.drawn.length} of ${channels}` : `${channels}`;
    this.facts.textContent = `${entry.stage === null ? "" : `stage ${entry.stage} · `}`
      + `${few} channels, by ${names[this.state.sort]} · η² ${shown(entry.specificity)}`;
    this.pin();
    this.tell(null);
  }

  pin() {
    const { pinned } = this.state;
    const place = pinned && pinned.block === this.block ? this.drawn.indexOf(pinned.channel) : -1;
    this.plot.pinned = place < 0 ? null : place;
    this.plot.tell();
    this.plot.draw();
  }

  tell(place) {
    if (place === null) {
      this.readout.textContent = "";
      return;
    }
    const { block, state } = this;
    const channel = this.drawn[place];
    const value = (name, number) => element("span", { className: "value" }, `${name} `,
      element("b", { text: shown(number) }));
    const parts = [
      element("b", { text: `channel ${channel}` }),
      value("all images", block.values("mean")[channel]),
      ...state.classes.map(({ place: at, name }) => value(name, block.means(at)[channel])),
      value("η²", block.values("specificity")[channel]),
      value("spread", block.values("deviation")[channel]),
    ];
    this.readout.replaceChildren(...parts.flatMap((part, at) => (at ? [" · ", part] : [part])));
  }

  close() {
    this.plot.close();
    this.root.remove();
  }
}
