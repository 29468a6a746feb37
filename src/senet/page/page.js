// The controls, and what they change.

const MANY = 128; // channels of a block above which a sample is shown at first
const places = new Map(data.classes.map((label, place) => [label, place]));
const state = {
  sort: "index", extent: "all", range: true, relative: false, fit: false, classes: [], pinned: null,
};
const slots = new Map(); // class → its line's slot, kept as long as it is chosen
const panels = new Map(); // block → its panel

function chooseClasses(labels) {
  for (const label of [...slots.keys()]) if (!labels.includes(label)) slots.delete(label);
  for (const label of labels) {
    if (slots.has(label)) continue;
    const taken = new Set(slots.values());
    let slot = 0;
    while (taken.has(slot)) slot++;
    slots.set(label, slot);
  }
  state.classes = labels.map((label) => ({
    place: places.get(label), name: data.names[label], slot: slots.get(label),
  }));
}

function swatch({ stroke, dash }) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const line = document.createElementNS(space, "line");
  const numbers = { x1: 0, y1: 5, x2: 22, y2: 5 };
  for (const [name, value] of Object.entries(numbers)) line.setAttribute(name, value);
  line.style.stroke = `var(${stroke})`;
  line.style.strokeDasharray = dash.join(" ");
  svg.setAttribute("class", "swatch");
  svg.setAttribute("aria-hidden", "true");
  svg.append(line);
  return svg;
}

function showLegend() {
  const line = (style, name) => element("li", {}, swatch(style),
    element("span", { className: "name", text: name, title: name }));
  byId("legend").replaceChildren(
    line({ stroke: "--all", dash: [] }, "all images"),
    ...state.classes.map(({ slot, name }) => line(lineStyle(slot), name)),
  );
}

function refreshPanels() {
  for (const panel of panels.values()) panel.refresh();
}

function chooseBlocks(numbers) {
  for (const [number, panel] of panels) {
    if (numbers.includes(number)) continue;
    panel.close();
    panels.delete(number);
  }
  const host = byId("panels");
  for (const number of numbers) {
    if (!panels.has(number)) panels.set(number, new Panel(blocks[number], state, pinChannel));
  }
  // In the order of execution; those that are in their place stay, and keep the focus.
  numbers.forEach((number, at) => {
    const { root } = panels.get(number);
    if (host.children[at] !== root) host.insertBefore(root, host.children[at] ?? null);
    panels.get(number).plot.draw();
  });
  byId("no-panels").hidden = numbers.length > 0;
}

function pinChannel(block, channel) {
  state.pinned = { block, channel };
  for (const panel of panels.values()) panel.pin();
  showChannel(block, channel);
}

function themeToggle(redraw) {
  const button = byId("theme");
  const root = document.documentElement;
  const asked = window.matchMedia("(prefers-color-scheme: dark)");
  const apply = (dark) => {
    root.dataset.theme = dark ? "dark" : "light";
    button.setAttribute("aria-pressed", String(dark));
    redraw();
  };
  button.addEventListener("click", () => apply(root.dataset.theme !== "dark"));
  asked.addEventListener("change", (event) => apply(event.matches));
  apply(asked.matches);
}

function begin() {
  byId("title").textContent = data.title;
  const channels = blocks.reduce((sum, block) => sum + block.channels, 0);
  const few = data.classes.length < data.names.length ? ` (${data.classes.length} of them here)` : "";
  const count = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
  byId("summary").textContent = `${count(data.images, "image")} of ${data.data} · `
    + `${data.names.length.toLocaleString("en")} classes${few} · ${count(blocks.length, "block")} · `
    + `${count(channels, "channel")}`;

  if (Math.max(...blocks.map((block) => block.channels)) > MANY) state.extent = "even";
  byId("extent").value = state.extent;
  chooseClasses(data.chosenClasses);
  showLegend();
  const blockList = new Checklist(byId("block-choice"), {
    what: "blocks", items: blocks.map((block) => ({ value: block.number, name: block.name })),
    chosen: data.chosenBlocks, onChange: chooseBlocks,
    presets: [
      { name: "As at first", values: data.chosenBlocks },
      { name: "All", values: blocks.map((block) => block.number) },
      { name: "None", values: [] },
    ],
  });
  new Checklist(byId("class-choice"), {
    what: "classes", items: data.classes.map((label) => ({ value: label, name: data.names[label] })),
    chosen: data.chosenClasses, swatch: (label) => swatch(lineStyle(slots.get(label))),
    presets: [{ name: "As at first", values: data.chosenClasses }, { name: "None", values: [] }],
    onChange: (labels) => {
      chooseClasses(labels);
      showLegend();
      refreshPanels();
    },
  });
  for (const name of ["sort", "extent"]) {
    byId(name).addEventListener("change", () => {
      state[name] = byId(name).value;
      refreshPanels();
    });
  }
  for (const name of ["range", "relative", "fit"]) {
    byId(name).addEventListener("change", () => {
      state[name] = byId(name).checked;
      refreshPanels();
    });
  }
  const plots = depthCharts({
    onPick: (number) => blockList.toggle(number, !blockList.chosen.has(number)),
  });
  // To begin with: the most specific channel of the most specific block.
  const first = [...blocks].sort((a, b) => b.entry.specificity - a.entry.specificity)[0];
  pinChannel(first, first.order("specificity")[0]);
  chooseBlocks(data.chosenBlocks);
  tellPictures();
  themeToggle(() => [...plots, ...[...panels.values()].map((panel) => panel.plot)]
    .forEach((plot) => plot.draw()));
}

begin();
