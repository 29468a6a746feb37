// One channel: its numbers, the classes and the images that open its gate most and least.

const ENDS = 4; // classes listed at each end

function showChannel(block, channel) {
  const of = (name) => block.values(name)[channel];
  byId("detail-heading").textContent = `${block.name} · channel ${channel}`;
  byId("detail-status").textContent = `Channel ${channel} of ${block.name} is shown beside the charts`;
  const permuted = Number.isNaN(of("null")) ? ""
    : ` (at most ${shown(of("null"))} with labels shuffled)`;
  byId("detail-values").replaceChildren(...[
    ["mean gate", `${shown(of("mean"))} ± ${shown(of("deviation"))} over images`],
    ["specificity η²", `${shown(of("specificity"))}${permuted}`],
    ["near its ends", `${percent(of("low"))} below, ${percent(of("high"))} above`],
  ].flatMap(([name, text]) => [element("dt", { text: name }), element("dd", { text })]));
  byId("detail-classes").replaceChildren(...classBars(block, channel));
  for (const end of ["most", "least"]) {
    const items = block.images(end, channel).map(([number, gate]) => imageItem(number, gate));
    byId(end).replaceChildren(...items);
  }
}

function classBars(block, channel) {
  const means = data.classes
    .map((label, place) => ({ name: data.names[label], mean: block.means(place)[channel] }))
    .filter(({ mean }) => !Number.isNaN(mean))
    .sort((a, b) => b.mean - a.mean);
  const { low, high } = block.entry.means;
  const [from, to] = low >= 0 && high <= 1 ? [0, 1] : [Math.min(0, low), high];
  const bar = ({ name, mean }) => {
    const fill = element("span", { className: "fill" });
    fill.style.width = `${(100 * (mean - from)) / (to - from || 1)}%`;
    return element("div", { className: "bar" }, element("span", { className: "name", text: name, title: name }),
      element("span", { className: "track" }, fill), element("span", { className: "number", text: shown(mean) }));
  };
  if (means.length <= 2 * ENDS + 1) return means.map(bar);
  const between = element("p", { className: "gap", text: `⋮ ${means.length - 2 * ENDS} more` });
  return [...means.slice(0, ENDS).map(bar), between, ...means.slice(-ENDS).map(bar)];
}

function imageItem(number, gate) {
  const picture = data.pictures.images[number];
  const [label, name, jpeg] = picture ?? [null, "", ""];
  const className = label === null ? "" : data.names[label];
  const title = [className, name, `image ${number}`].filter(Boolean).join(" · ");
  let shape;
  if (picture) {
    shape = element("img", { alt: title, title });
    shape.addEventListener("load", () => shape.classList.toggle("small", shape.naturalWidth <= 32));
    shape.src = `data:image/jpeg;base64,${jpeg}`;
  } else {
    shape = element("span", { className: "absent", text: `${number}`, title: `${title}, not in this page` });
  }
  return element("li", {}, shape, element("span", { className: "name", text: className || `image ${number}`, title }),
    shown(gate));
}

function tellPictures() {
  const { complete, of, images } = data.pictures;
  const count = Object.keys(images).length;
  byId("pictures-note").textContent = !count
    ? "This page was made without pictures; images are told by their number."
    : complete === of ? "Images count from 0, in the order in which they were read."
    : `To keep this page small, pictures are there for ${complete.toLocaleString("en")} of `
      + `${of.toLocaleString("en")} channels: the most specific ones and an even sample. `
      + "Other images are told by their number.";
}
