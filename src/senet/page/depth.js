// Specificity and saturation, a point a block.

function depthCharts({ onPick }) {
  const readout = byId("depth-readout");
  const idle = `${blocks.length} blocks, from the image to the classifier.`;
  const number = (block, name) => block.entry[name] ?? NaN;
  const column = (name) => blocks.map((block) => number(block, name));
  const end = (at) => blocks.map((block) => block.entry.nullRange?.[at] ?? NaN);
  const marks = [];
  blocks.forEach(({ entry }, at) => {
    if (entry.stage !== null && (at === 0 || entry.stage !== blocks[at - 1].entry.stage)) {
      marks.push({ between: at - 1, text: marks.length ? `${entry.stage}` : `stage ${entry.stage}` });
    }
  });
  const ticks = blocks.map((_, place) => ({ place, text: String(place + 1) }));
  const above = (...lists) => {
    const known = lists.flat().filter((value) => !Number.isNaN(value));
    return 1.08 * Math.max(1e-3, ...known);
  };
  const common = { size: blocks.length, marks, ticks, inset: 12 };
  const specific = {
    ...common, y: [0, above(column("specificity"), end(1))],
    bands: [{ low: end(0), high: end(1), edge: true }],
    lines: [{ values: column("specificity"), stroke: "--line-0", width: 2, dots: true }],
  };
  const saturated = {
    ...common, y: [0, 100 * above(column("low"), column("high"))], bands: [],
    format: (text) => `${text} %`,
    lines: ["low", "high"].map((name, slot) => ({
      values: column(name).map((value) => 100 * value), stroke: `--line-${slot}`, width: 2, dots: true,
      dash: DASHES[slot],
    })),
  };

  function describe(place) {
    const { name, entry } = blocks[place];
    return `${name}, block ${place + 1} of ${blocks.length}: specificity ${shown(entry.specificity)}, `
      + `near the ends ${percent(entry.low)} and ${percent(entry.high)}`;
  }

  function move(place, from) {
    for (const plot of plots) if (plot !== from && plot.cursor !== place) {
      plot.cursor = place;
      plot.tell();
      plot.draw();
    }
    if (place === null) {
      readout.textContent = idle;
      return;
    }
    const { name, entry } = blocks[place];
    const range = entry.nullRange
      ? ` (labels shuffled: ${shown(entry.nullRange[0])} to ${shown(entry.nullRange[1])}, p ${shown(entry.p)})` : "";
    const stage = entry.stage === null ? "" : `, stage ${entry.stage}`;
    readout.replaceChildren(
      element("b", { text: name }),
      ` · block ${place + 1} of ${blocks.length}${stage} · η² `,
      element("b", { text: shown(entry.specificity) }),
      `${range} · near the lower end `, element("b", { text: percent(entry.low) }),
      ", the upper end ", element("b", { text: percent(entry.high) }),
      ` · mean gate ${shown(entry.mean)} · ${entry.channels} channels`,
    );
  }

  const plots = [];
  for (const [id, label, content] of [
    ["specificity", "Class specificity by depth", specific],
    ["saturation", "Saturation by depth", saturated],
  ]) {
    const plot = new Plot(byId(id), {
      label, height: 210, content: () => content, describe, onPick,
      onMove: (place) => move(place, plot),
    });
    plots.push(plot);
  }
  readout.textContent = idle;
  depthTable();
  return plots;
}

function depthTable() {
  const columns = [
    ["block", (e) => e.block], ["stage", (e) => e.stage ?? "–"], ["channels", (e) => e.channels],
    ["mean gate", (e) => shown(e.mean)], ["spread over images", (e) => shown(e.deviation)],
    ["near lower end", (e) => percent(e.low)], ["near upper end", (e) => percent(e.high)],
    ["specificity η²", (e) => shown(e.specificity)], ["labels shuffled", (e) => shown(e.null)],
    ["p", (e) => shown(e.p)],
  ];
  const head = columns.map(([name]) => element("th", { scope: "col", text: name }));
  byId("depth-table").tHead.append(element("tr", {}, ...head));
  byId("depth-table").tBodies[0].append(...blocks.map(({ entry }) => element("tr", {},
    ...columns.map(([, of], at) => at
      ? element("td", { text: String(of(entry)) })
      : element("th", { scope: "row", text: of(entry) })))));
}
