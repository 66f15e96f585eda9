// Small plots of the last two minutes, and how numbers are said.

const SAMPLES = 120; // one a second
const WIDTH = 120;
const HEIGHT = 32;
const SVG = "http://www.w3.org/2000/svg";

const UNITS = [[1e9, "GB/s"], [1e6, "MB/s"], [1e3, "kB/s"]];

export function rate(bytes) {
  const [factor, unit] = UNITS.find(([least]) => bytes >= least) ?? [1, "B/s"];
  const value = bytes / factor;
  return `${value >= 100 || factor === 1 ? Math.round(value) : value.toFixed(1)} ${unit}`;
}

export const milliseconds = (seconds) => `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
export const percent = (part) => `${(part * 100).toFixed(part && part < 0.1 ? 1 : 0)} %`;

export function duration(seconds) {
  const parts = [[Math.floor(seconds / 86_400), "d"], [Math.floor(seconds / 3600) % 24, "h"], [Math.floor(seconds / 60) % 60, "min"]];
  const said = parts.filter(([count]) => count).slice(0, 2).map(([count, unit]) => `${count} ${unit}`);
  return said.join(" ") || `${Math.floor(seconds)} s`;
}

/** One plot: `title` above it, its newest value beside, both for a screen reader too. */
export class Plot {
  constructor(title, say, least) {
    this.title = title;
    this.say = say; // from a value to text
    this.least = least; // the scale shows at least this much, so that noise looks like noise
    this.values = [];
    this.element = document.createElement("figure");
    this.element.className = "plot";
    const caption = document.createElement("figcaption");
    this.output = document.createElement("output");
    this.output.setAttribute("aria-live", "off"); // once a second would be too much to hear
    caption.append(title, this.output);
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `${title}: not known yet`);
    this.svg = svg;
    this.area = shape("area");
    this.line = shape("line");
    svg.append(this.area, this.line);
    this.element.append(caption, svg);
  }

  /** `value` may be null: nothing is known of that second. */
  add(value) {
    this.values.push(value);
    if (this.values.length > SAMPLES) this.values.shift();
    this.output.textContent = value === null ? "–" : this.say(value);
    const known = this.values.filter((each) => each !== null);
    const most = Math.max(this.least, ...known.map((each) => 1.1 * each));
    this.svg.setAttribute("aria-label", known.length
      ? `${this.title}, the last ${duration(this.values.length)}: ${this.say(Math.min(...known))} to ${this.say(Math.max(...known))}`
      : `${this.title}: not known yet`);
    const first = SAMPLES - this.values.length;
    let line = "";
    let area = "";
    let begun = null;
    this.values.forEach((each, index) => {
      const x = first + index + 1;
      if (each === null) {
        if (begun !== null) area += `L${x - 1} ${HEIGHT}Z`;
        begun = null;
        return;
      }
      const point = `${x} ${(HEIGHT - 1 - (HEIGHT - 2) * each / most).toFixed(1)}`;
      line += begun === null ? `M${point}` : `L${point}`;
      area += begun === null ? `M${x} ${HEIGHT}L${point}` : `L${point}`;
      begun ??= x;
    });
    if (begun !== null) area += `L${first + this.values.length} ${HEIGHT}Z`;
    this.line.setAttribute("d", line);
    this.area.setAttribute("d", area);
  }
}

function shape(name) {
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("class", name);
  return path;
}
