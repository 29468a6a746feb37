// A list of things to tick, with a box to filter it where it is long.

const FILTERED = 12;

class Checklist {
  // items: [{value, name}]; presets: [{name, values}], a button each; swatch(value) may give an
  // element to put before a name. onChange hears the chosen values, in the order of the list.
  constructor(host, { what, items, chosen, presets, swatch, onChange }) {
    Object.assign(this, { what, swatch, onChange });
    this.chosen = new Set(chosen);
    this.rows = items.map(({ value, name }) => this.row(value, name));
    this.options = element("div", { className: "options" }, ...this.rows.map((row) => row.label));
    this.count = element("p", { className: "count", role: "status", "aria-live": "polite" });
    this.search = element("input", {
      type: "search", placeholder: "filter …", "aria-label": `Filter the ${what}`, autocomplete: "off",
    });
    this.search.hidden = items.length < FILTERED;
    this.search.addEventListener("input", () => this.filter());
    const buttons = presets.map(({ name, values }) => {
      const button = element("button", { type: "button", text: name });
      button.addEventListener("click", () => this.set(values));
      return button;
    });
    host.append(this.search, this.options, element("div", { className: "buttons" }, ...buttons), this.count);
    this.update();
  }

  row(value, name) {
    const box = element("input", { type: "checkbox" });
    const place = element("span", { className: "swatch-place" });
    const label = element("label", {}, box, ...(this.swatch ? [place] : []),
      element("span", { className: "name", text: name }));
    box.addEventListener("change", () => this.toggle(value, box.checked));
    return { value, name: name.toLowerCase(), box, place, label };
  }

  values() {
    return this.rows.filter((row) => this.chosen.has(row.value)).map((row) => row.value);
  }

  toggle(value, on) {
    if (on) this.chosen.add(value);
    else this.chosen.delete(value);
    this.changed();
  }

  set(values) {
    this.chosen = new Set(values);
    this.changed();
  }

  changed() {
    this.onChange(this.values());
    this.update();
  }

  filter() {
    const wanted = this.search.value.trim().toLowerCase();
    for (const row of this.rows) row.label.hidden = !row.name.includes(wanted);
    this.update();
  }

  update() {
    for (const row of this.rows) {
      const on = this.chosen.has(row.value);
      row.box.checked = on;
      row.place.replaceChildren(...(on && this.swatch ? [this.swatch(row.value)] : []));
    }
    const matching = this.rows.filter((row) => !row.label.hidden).length;
    const filtered = matching < this.rows.length ? `, ${matching} match` : "";
    this.count.textContent = `${this.chosen.size} of ${this.rows.length} ${this.what} shown${filtered}`;
  }
}
