"use strict";
// Draws the picture in #data. Everything that comes from there goes into the page as text (textContent), never as markup.
const picture = JSON.parse(document.getElementById("data").textContent);
const { status, shares, regions, stalls } = picture;
const PAGE_BYTES = 4096;
const MEANING = {
  eager: ["eager", "before the process ran"],
  demand: ["on demand", "a thread waited for it"],
  neighbour: ["neighbours", "with something that a thread waited for"],
  replay: ["replay", "as earlier restores touched it"],
  bulk: ["background", "though nobody asked"],
  removed: ["dropped", "never came: the program dropped or unmapped it first"],
  lost: ["lost", "never came: given up, or the process ended first"],
  earlier: ["before this pager", "came, or was dropped, before this pager took over"],
  missing: ["missing", "still to come"],
};
const byId = (id) => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  const { data = {}, ...others } = properties;
  Object.assign(made, others);
  Object.assign(made.dataset, data);
  made.append(...children);
  return made;
}

function swatch(colour) {
  const made = element("span", { className: "swatch" });
  made.style.background = `var(--${colour})`;
  return made;
}

// Words.
function bytesText(bytes) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  let value = bytes;
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return unit === 0 ? `${bytes} bytes` : `${value < 10 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : value.toFixed(0)} ${units[unit]}`;
}
function timeText(us) {
  if (us === null || us === undefined) return "–";
  if (us < 1000) return `${us} µs`;
  const [value, unit] = us < 1e6 ? [us / 1000, "ms"] : [us / 1e6, "s"];
  return `${value < 1000 ? Number(value.toPrecision(3)) : Math.round(value).toLocaleString("en")} ${unit}`;
}
const hex = (address) => "0x" + BigInt(address).toString(16);
const plural = (count, one, many) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
const contents = (region) => region.runs.reduce((sum, run) => sum + run[1], 0);
const regionName = (region) => region.name || "anonymous memory";

// Colours.
let palette = {};
function readPalette() {
  const style = getComputedStyle(document.documentElement);
  const names = [...Object.keys(MEANING), "zero", "untimed", "text", "quiet", "line", "empty", "back"];
  palette = Object.fromEntries(names.map((name) => [name, style.getPropertyValue("--" + name).trim()]));
}
const GRADIENT = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // viridis, as even to the eye as it gets
function gradient(part) {
  const place = Math.min(Math.max(part, 0), 1) * (GRADIENT.length - 1);
  const at = Math.min(Math.floor(place), GRADIENT.length - 2);
  const mix = (index) => Math.round(GRADIENT[at][index] + (GRADIENT[at + 1][index] - GRADIENT[at][index]) * (place - at));
  return `rgb(${mix(0)}, ${mix(1)}, ${mix(2)})`;
}
const timed = (how) => !["missing", "earlier"].includes(how);

// Time: until the last thing happened; a while longer where pages are still to come.
const lastRun = regions.reduce((last, region) => region.runs.reduce((most, run) => Math.max(most, run[4]), last), 0);
const lastStall = stalls.reduce((last, stall) => Math.max(last, stall[0] + stall[1]), 0);
const settled = ["resident", "gone", "failed", "poisoned"].includes(status.state);
const lastUs = Math.max(lastRun, lastStall, picture.resident_us ?? 0, picture.ran_us ?? 0, 1);
const endUs = settled ? lastUs : Math.min(Math.max(picture.taken_us, lastUs), lastUs * 1.5);

// A canvas as sharp as the screen; yields its context and its size in CSS pixels.
function prepare(canvas, height) {
  const width = canvas.clientWidth || 1100;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.font = "11px system-ui, sans-serif";
  return [context, width];
}

const tip = byId("tip");
function point(canvas, words) {
  canvas.addEventListener("mousemove", (event) => {
    const text = words(event.offsetX, event.offsetY);
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
    const below = event.clientY + 18;
    tip.style.left = `${Math.max(left, 4)}px`;
    tip.style.top = `${below + tip.offsetHeight > window.innerHeight ? event.clientY - tip.offsetHeight - 10 : below}px`;
  });
  canvas.addEventListener("mouseleave", () => { tip.hidden = true; });
}

// Head, shares, numbers.
function tellAll() {
  document.title = `defrost: ${status.snapshot}, process ${status.pid}`;
  byId("title").textContent = `${status.snapshot}, restored as process ${status.pid}`;
  const there = picture.resident_us === null ? "" : ` after ${timeText(picture.resident_us)}`;
  const came = status.total_bytes - status.missing_bytes;
  byId("summary").textContent =
    `${status.state}${there}: ${bytesText(came)} of ${bytesText(status.total_bytes)} settled, ` +
    `${plural(status.demand_faults, "fault", "faults")}` +
    (status.demand_faults ? ` (median ${timeText(status.stall_p50_us)}, 99 of 100 within ${timeText(status.stall_p99_us)})` : "") +
    `, from ${status.store}`;
  if (status.adopted > 0) {
    byId("notice").hidden = false;
    byId("notice").textContent =
      `This pager took over from another (${plural(status.adopted, "time", "times")} in all): it does not know how memory came before ` +
      "this pager, only that it did. Times and faults are its own.";
  }
  const total = shares.reduce((sum, share) => sum + share.bytes, 0);
  const percent = (bytes) => (total === 0 ? "–" : `${((bytes / total) * 100).toFixed(1)} %`);
  const number = (text, data = {}) => element("td", { className: "number", textContent: text, data });
  for (const { how, bytes } of shares) {
    const [name, meaning] = MEANING[how];
    if (bytes > 0) {
      const part = element("div", { title: `${name}: ${bytesText(bytes)}` });
      part.style.flexGrow = bytes;
      part.style.background = `var(--${how})`;
      byId("bar").append(part);
    }
    byId("shares").tBodies[0].append(element("tr", { hidden: bytes === 0 && how === "earlier" },
      element("th", {}, swatch(how), name), element("td", { className: "meaning", textContent: meaning }),
      number(bytesText(bytes), { share: how, value: bytes }), number(percent(bytes))));
  }
  byId("shares").tFoot.append(element("tr", {}, element("th", { textContent: "total" }),
    element("td", { className: "meaning", textContent: "memory with contents that came lazily" }),
    number(bytesText(total), { field: "sum_bytes", value: total }), number(percent(total))));
  const beside = (colour, name, meaning, text) => {
    byId("shares").tFoot.append(element("tr", {}, element("th", {}, swatch(colour), name),
      element("td", { className: "meaning", textContent: `${meaning}: not part of the total` }), number(text), number("")));
  };
  beside("eager", "written", "pages of files and whatever else cannot wait, written by the restore itself", bytesText(picture.written_bytes));
  beside("zero", "zeros", "touches of memory that had no contents", plural(status.zero_faults, "fault", "faults"));

  const drawn = regions.filter((region) => region.lazy).reduce((sum, region) => sum + contents(region), 0) * PAGE_BYTES;
  const runs = regions.reduce((sum, region) => sum + region.runs.length, 0);
  const facts = [
    ["process", "pid", status.pid],
    ["snapshot", "snapshot", status.snapshot],
    ["store", "store", status.store],
    ["server asked first", "endpoint", status.endpoint],
    ["state", "state", status.state],
    ["because", "why", status.why],
    ["this pager began", "begun_unix_ms", picture.begun_unix_ms, new Date(picture.begun_unix_ms).toISOString()],
    ["the process ran after", "ran_us", picture.ran_us, timeText(picture.ran_us)],
    ["everything was there after", "resident_us", picture.resident_us, timeText(picture.resident_us)],
    ["this picture was taken after", "taken_us", picture.taken_us, timeText(picture.taken_us)],
    ["memory that comes lazily", "total_bytes", status.total_bytes, bytesText(status.total_bytes)],
    ["of it still missing", "missing_bytes", status.missing_bytes, bytesText(status.missing_bytes)],
    ["written by the restore itself", "written_bytes", picture.written_bytes, bytesText(picture.written_bytes)],
    ["faults answered with contents", "demand_faults", status.demand_faults, status.demand_faults.toLocaleString("en")],
    ["faults answered with zeros", "zero_faults", status.zero_faults, status.zero_faults.toLocaleString("en")],
    ["stall, median", "stall_p50_us", status.stall_p50_us, timeText(status.stall_p50_us)],
    ["stall, 99th percentile", "stall_p99_us", status.stall_p99_us, timeText(status.stall_p99_us)],
    ["known of earlier restores", "working_set_bytes", status.working_set_bytes, bytesText(status.working_set_bytes)],
    ["of it replayed", "replayed_bytes", status.replayed_bytes, bytesText(status.replayed_bytes)],
    ["reads hedged, and won", "hedges", status.hedges, `${status.hedges}, ${status.hedges_won}`],
    ["fail-overs", "fail_overs", status.fail_overs],
    ["take-overs by another pager", "adopted", status.adopted],
    ["last error", "last_error", status.last_error],
    ["drawn", "drawn_bytes", drawn, `${bytesText(drawn)} in ${plural(runs, "run", "runs")} and ${plural(regions.length, "region", "regions")}`],
  ];
  for (const [name, field, value, text] of facts) {
    if (value === null || value === undefined) continue;
    byId("facts").tBodies[0].append(element("tr", {}, element("th", { textContent: name }),
      element("td", { textContent: text ?? String(value), data: { field, value } })));
  }
  byId("space-note").textContent =
    `One colour stands for ${bytesText(picture.unit_bytes)} at least` +
    (runs > 0 ? "; where a strip has less room, for what most of it is." : ".");
}

// The time line.
const AXIS = { left: 64, right: 12, top: 6, bottom: 20 };
function ticks(end) {
  const rough = end / 6;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  return Array.from({ length: Math.floor(end / step) + 1 }, (_, index) => index * step);
}
function axes(context, width, height) {
  const x = (us) => AXIS.left + (us / endUs) * (width - AXIS.left - AXIS.right);
  context.textAlign = "center";
  context.textBaseline = "top";
  for (const us of ticks(endUs)) {
    context.fillStyle = palette.line;
    context.fillRect(Math.round(x(us)), AXIS.top, 1, height - AXIS.top - AXIS.bottom);
    context.fillStyle = palette.quiet;
    context.fillText(us === 0 ? "0" : timeText(us), Math.min(Math.max(x(us), AXIS.left), width - 24), height - AXIS.bottom + 5);
  }
  return x;
}
function moments(context, x, height) {
  context.textBaseline = "top";
  const marks = [["the process runs", picture.ran_us, 0], ["all is there", picture.resident_us, 13]];
  for (const [name, us, down] of marks.filter((mark) => mark[1] !== null)) {
    const at = Math.round(x(us));
    const late = us > endUs / 2;
    context.fillStyle = palette.text;
    context.fillRect(at, AXIS.top, 1, height - AXIS.top - AXIS.bottom);
    context.textAlign = late ? "right" : "left";
    const room = context.measureText(name).width + 6;
    context.fillStyle = palette.back;
    context.globalAlpha = 0.75;
    context.fillRect(late ? at - 2 - room : at + 2, AXIS.top + 2 + down, room, 13);
    context.globalAlpha = 1;
    context.fillStyle = palette.text;
    context.fillText(name, at + (late ? -5 : 5), AXIS.top + 3 + down);
  }
}
// Bytes there at the end of each of so many equal parts of the time, one way on top of the other.
function arrivals(parts) {
  const ways = ["earlier", "eager", "replay", "demand", "neighbour", "bulk", "removed", "lost"];
  const came = Object.fromEntries(ways.map((how) => [how, new Float64Array(parts)]));
  const part = (us) => Math.min(Math.floor((us / endUs) * parts), parts - 1);
  for (const region of regions.filter((candidate) => candidate.lazy)) {
    for (const [, pages, how, from, to] of region.runs) {
      if (!came[how]) continue;
      const [first, last] = [part(from), part(to)];
      for (let at = first; at <= last; at += 1) came[how][at] += (pages * PAGE_BYTES) / (last - first + 1);
    }
  }
  for (const how of ways) came[how].forEach((_, at) => { if (at > 0) came[how][at] += came[how][at - 1]; });
  return ways.map((how) => [how, came[how]]);
}
function drawArrivals() {
  const height = 170;
  const canvas = byId("arrivals");
  const [context, width] = prepare(canvas, height);
  const x = axes(context, width, height);
  const total = Math.max(status.total_bytes, 1);
  const y = (bytes) => height - AXIS.bottom - (bytes / total) * (height - AXIS.top - AXIS.bottom);
  const parts = Math.max(Math.floor(width - AXIS.left - AXIS.right), 1);
  const below = new Float64Array(parts);
  for (const [how, came] of arrivals(parts)) {
    context.fillStyle = palette[how];
    came.forEach((bytes, at) => {
      const [low, high] = [y(below[at]), y(below[at] + bytes)];
      if (low - high > 0.05) context.fillRect(AXIS.left + at, high, 1, low - high);
      below[at] += bytes;
    });
  }
  context.fillStyle = palette.quiet;
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const share of [0, 0.5, 1]) context.fillText(bytesText(Math.round(total * share)), AXIS.left - 6, Math.min(Math.max(y(total * share), 8), height - AXIS.bottom));
  moments(context, x, height);
}
let dots = [];
function drawStalls() {
  const height = 190;
  const [context, width] = prepare(byId("stalls"), height);
  const x = axes(context, width, height);
  const lengths = stalls.map((stall) => Math.max(stall[1], 1));
  const low = 10 ** Math.floor(Math.log10(lengths.reduce((least, us) => Math.min(least, us), 100)));
  const high = 10 ** Math.ceil(Math.log10(lengths.reduce((most, us) => Math.max(most, us), 1000) + 1));
  const y = (us) => height - AXIS.bottom - (Math.log10(Math.max(us, low) / low) / Math.log10(high / low)) * (height - AXIS.top - AXIS.bottom);
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (let us = low; us <= high; us *= 10) {
    context.fillStyle = palette.line;
    context.fillRect(AXIS.left, Math.round(y(us)), width - AXIS.left - AXIS.right, 1);
    context.fillStyle = palette.quiet;
    context.fillText(timeText(us), AXIS.left - 6, Math.min(Math.max(y(us), 8), height - AXIS.bottom));
  }
  moments(context, x, height);
  dots = stalls.map((stall) => ({ stall, x: x(stall[0]), y: y(Math.max(stall[1], 1)) }));
  context.globalAlpha = dots.length > 1000 ? 0.55 : 0.85;
  for (const dot of dots) {
    context.fillStyle = dot.stall[3] ? palette.zero : palette.demand;
    context.beginPath();
    context.arc(dot.x, dot.y, dots.length > 1000 ? 1.6 : 2.6, 0, 2 * Math.PI);
    context.fill();
  }
  context.globalAlpha = 1;
  const few = stalls.length < picture.stalls_seen ? `; an even sample of ${stalls.length.toLocaleString("en")} is drawn, with the longest` : "";
  byId("stalls-note").textContent =
    stalls.length === 0 ? "No thread has waited for a page." : `${plural(picture.stalls_seen, "fault", "faults")}, answered with contents or zeros${few}.`;
}

// The address space: each row is a tape of regions, wrapped into lines.
const LINE = { height: 11, pitch: 13 };
const BIG_AT_MOST = 40;
function rowsOf() {
  const sizes = new Map(regions.map((region) => [region, contents(region)]));
  const total = Math.max([...sizes.values()].reduce((sum, pages) => sum + pages, 0), 1);
  const big = new Set([...regions].filter((region) => sizes.get(region) > total / 100).sort((a, b) => sizes.get(b) - sizes.get(a)).slice(0, BIG_AT_MOST));
  const rows = [];
  for (const region of regions) {
    const last = rows[rows.length - 1];
    if (big.has(region)) rows.push({ regions: [region], lines: Math.min(Math.max(Math.round((sizes.get(region) / total) * 14), 1), 14) });
    else if (last && last.lines === 0) last.regions.push(region);
    else rows.push({ regions: [region], lines: 0 });
  }
  return rows;
}
const rows = rowsOf();
const pagesIn = (region) => (region.end - region.start) / PAGE_BYTES;
function layOut(row, width) {
  if (row.lines > 0) return [{ region: row.regions[0], x: 0, length: width * row.lines }];
  const span = Math.max(row.regions.reduce((sum, region) => sum + Math.min(pagesIn(region), 4096), 0), 1);
  let x = 0;
  return row.regions.map((region) => {
    const length = Math.min(Math.max(Math.round((Math.min(pagesIn(region), 4096) / span) * width * 0.8), 3), Math.round(width / 4));
    const part = { region, x, length };
    x += length + 1;
    return part;
  });
}
function colourOf(run, mode) {
  if (mode === "how") return palette[run[2]];
  if (!timed(run[2])) return palette.untimed;
  return gradient(Math.log1p(((run[3] + run[4]) / 2) / 1000) / Math.log1p(endUs / 1000));
}
// For each column of a part, the run that covers most of it.
function columns(part) {
  const pages = pagesIn(part.region);
  const cover = new Float32Array(part.length);
  const which = new Int32Array(part.length).fill(-1);
  part.region.runs.forEach((run, index) => {
    const [from, to] = [(run[0] / pages) * part.length, ((run[0] + run[1]) / pages) * part.length];
    for (let at = Math.floor(from); at < to && at < part.length; at += 1) {
      const covered = Math.min(to, at + 1) - Math.max(from, at);
      if (covered > cover[at]) { cover[at] = covered; which[at] = index; }
    }
  });
  return which;
}
function drawRow(row, mode) {
  const width = Math.floor(row.canvas.clientWidth || 1100);
  const parts = layOut(row, width);
  const length = parts.reduce((most, part) => Math.max(most, part.x + part.length), 1);
  const [context] = prepare(row.canvas, Math.ceil(length / width) * LINE.pitch);
  const strip = (x, count, colour) => {
    context.fillStyle = colour;
    for (let from = x; from < x + count;) {
      const upto = Math.min(x + count, (Math.floor(from / width) + 1) * width);
      context.fillRect(from % width, Math.floor(from / width) * LINE.pitch, upto - from, LINE.height);
      from = upto;
    }
  };
  for (const part of parts) {
    strip(part.x, part.length, palette.empty);
    const which = columns(part);
    for (let at = 0; at < part.length;) {
      let upto = at + 1;
      while (upto < part.length && which[upto] === which[at]) upto += 1;
      if (which[at] >= 0) strip(part.x + at, upto - at, colourOf(part.region.runs[which[at]], mode));
      at = upto;
    }
    if (mode === "how") {
      for (const [, , address, zero] of zerosIn(part.region)) {
        if (zero) strip(part.x + Math.min(Math.floor(((address - part.region.start) / (part.region.end - part.region.start)) * part.length), part.length - 1), 1, palette.zero);
      }
    }
  }
  Object.assign(row, { width, parts });
}
const zeroStalls = stalls.filter((stall) => stall[3]).sort((a, b) => a[2] - b[2]);
function zerosIn(region) {
  const first = lower(zeroStalls, (stall) => stall[2] >= region.start);
  const last = lower(zeroStalls, (stall) => stall[2] >= region.end);
  return zeroStalls.slice(first, last);
}
// The first place in a list at which `holds`, which holds from there on.
function lower(list, holds) {
  let [low, high] = [0, list.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (holds(list[middle])) high = middle; else low = middle + 1;
  }
  return low;
}
function wordsAt(row, x, y) {
  const at = Math.floor(y / LINE.pitch) * row.width + Math.min(x, row.width - 1);
  const part = row.parts[lower(row.parts, (candidate) => candidate.x + candidate.length > at)];
  if (!part || at < part.x) return "";
  const { region } = part;
  const page = Math.floor(((at - part.x) / part.length) * pagesIn(region));
  const head = `${hex(region.start + page * PAGE_BYTES)}\n${regionName(region)} ${region.prot}, ${bytesText(region.end - region.start)}`;
  // The column's own run: a strip has less room than the region has pages.
  const columnPages = pagesIn(region) / part.length;
  const near = region.runs.filter((run) => run[0] < page + columnPages && run[0] + run[1] > page);
  const run = near.sort((a, b) => b[1] - a[1])[0];
  if (!run) return `${head}\nno contents${region.name.startsWith("/") ? " but the file's" : ": zeros when touched"}`;
  const [, pages, how, from, to] = run;
  const when = !timed(how) || !region.lazy ? "" : from === to ? `, at ${timeText(from)}` : `, from ${timeText(from)} to ${timeText(to)}`;
  const how2 = region.lazy ? MEANING[how][0] : "written by the restore itself";
  return `${head}\n${how2}${when}: ${bytesText(pages * PAGE_BYTES)}`;
}
function makeRows() {
  for (const row of rows) {
    const [first, last] = [row.regions[0], row.regions[row.regions.length - 1]];
    const pages = row.regions.reduce((sum, region) => sum + contents(region), 0);
    const name = row.regions.length > 1 ? plural(row.regions.length, "region", "regions") : `${regionName(first)}${first.lazy ? "" : " (not lazy)"}`;
    row.canvas = element("canvas", { data: { regions: row.regions.length } });
    byId("space").append(element("div", { className: "region" },
      element("div", { className: "label" }, element("code", { textContent: `${hex(first.start)}–${hex(last.end)}` }),
        element("span", { className: "name", textContent: name, title: name }),
        element("span", { textContent: row.regions.length > 1 ? "" : first.prot }), element("span", { textContent: bytesText(pages * PAGE_BYTES) })),
      row.canvas));
    point(row.canvas, (x, y) => wordsAt(row, x, y));
  }
}
function drawScale(mode) {
  byId("scale").hidden = mode !== "when";
  byId("scale-from").textContent = "0";
  byId("scale-to").textContent = timeText(Math.round(endUs));
  const [context, width] = prepare(byId("scale-colours"), 12);
  for (let at = 0; at < width; at += 1) {
    context.fillStyle = gradient(at / width);
    context.fillRect(at, 0, 1, 12);
  }
}
function drawAll() {
  readPalette();
  const mode = document.querySelector("input[name=mode]:checked").value;
  drawArrivals();
  drawStalls();
  drawScale(mode);
  rows.forEach((row) => drawRow(row, mode));
}

tellAll();
makeRows();
drawAll();
point(byId("stalls"), (x, y) => {
  const distance = (dot) => (dot.x - x) ** 2 + (dot.y - y) ** 2;
  const nearest = dots.reduce((best, dot) => (best === null || distance(dot) < distance(best) ? dot : best), null);
  if (nearest === null || distance(nearest) > 100) return "";
  const [at, us, address, zero] = nearest.stall;
  const region = regions.find((candidate) => candidate.start <= address && address < candidate.end);
  return `${timeText(us)} at ${timeText(at)}, answered with ${zero ? "zeros" : "contents"}\n${hex(address)} ${region ? regionName(region) : ""}`;
});
document.querySelectorAll("input[name=mode]").forEach((input) => input.addEventListener("change", drawAll));
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
let redraw = 0;
window.addEventListener("resize", () => {
  cancelAnimationFrame(redraw);
  redraw = requestAnimationFrame(drawAll);
});
document.body.dataset.drawn = "true";
