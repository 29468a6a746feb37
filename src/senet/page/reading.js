// The data of the page, as they were packed: codes of 8 or 16 bits in base64.

const data = JSON.parse(document.getElementById("data").textContent);
const SAMPLE = 50;

function bytesOf(text) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let at = 0; at < letters.length; at++) bytes[at] = letters.charCodeAt(at);
  return bytes;
}

function unpack({ bits, low, high, codes }) {
  const bytes = bytesOf(codes);
  const whole = bits === 16 ? new Uint16Array(bytes.buffer) : bytes;
  const none = 2 ** bits - 1;
  const step = (high - low) / (none - 1);
  return Float32Array.from(whole, (code) => (code === none ? NaN : low + code * step));
}

// What a block has, unpacked when it is first looked at.
class Block {
  constructor(entry, number) {
    this.entry = entry;
    this.number = number;
    this.name = entry.name;
    this.path = entry.block;
    this.channels = entry.channels;
    this.kept = new Map();
  }

  once(name, make) {
    if (!this.kept.has(name)) this.kept.set(name, make());
    return this.kept.get(name);
  }

  // One number a channel: mean, deviation, specificity, null, low, high, lowest, highest.
  values(name) {
    return this.once(name, () => unpack(this.entry.values[name]));
  }

  // Mean gate by channel of a class, by the class's place among those of the page.
  means(place) {
    const all = this.once("means", () => unpack(this.entry.means));
    return all.subarray(place * this.channels, (place + 1) * this.channels);
  }

  // Channels in an order: by number, or by a value with the highest first and no value last.
  order(by) {
    return this.once(`order ${by}`, () => {
      const channels = Array.from({ length: this.channels }, (_, at) => at);
      if (by === "index") return channels;
      const values = this.values(by);
      const key = (at) => (Number.isNaN(values[at]) ? -Infinity : values[at]);
      return channels.sort((a, b) => key(b) - key(a) || a - b);
    });
  }

  // The images at one end of a channel's gate: [number, gate], the furthest first.
  images(end, channel) {
    const { count, bits, images, gates } = this.entry[end];
    const Whole = bits === 16 ? Uint16Array : Uint32Array;
    const numbers = this.once(`${end} images`, () => new Whole(bytesOf(images).buffer));
    const values = this.once(`${end} gates`, () => unpack(gates));
    const found = [];
    for (let at = channel * count; at < (channel + 1) * count; at++) {
      found.push([numbers[at], values[at]]);
    }
    return found;
  }
}

const blocks = data.blocks.map((entry, number) => new Block(entry, number));

// Up to count of a list, evenly spaced, both ends among them.
function spread(list, count) {
  if (list.length <= count) return list;
  return Array.from({ length: count }, (_, at) =>
    list[Math.round((at * (list.length - 1)) / (count - 1))]);
}

function shown(value, digits = 3) {
  return value === null || Number.isNaN(value) ? "–" : value.toFixed(digits);
}

function percent(value) {
  return value === null || Number.isNaN(value) ? "–" : `${(100 * value).toFixed(1)} %`;
}

// An element with text, never with markup: names are whatever their owner called them.
function element(kind, { text, className, ...attributes } = {}, ...children) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function byId(id) {
  return document.getElementById(id);
}
