// Draws heat maps and searches the gallery. All text from data is set as text, never as markup.
"use strict";

const LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
// A veil over the image, thick where a score is lowest, gone where it is highest: red, green, blue, opacity in 255.
const VEIL = [22, 22, 58, 220];
const PAGE_SIZE = 60;

const PIXELS_PER_PATCH = 24;

// One pixel for each patch; the browser smooths them to the image's size.
function drawVeil(canvas) {
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  [...canvas.dataset.heat].forEach((sign, patch) => {
    const value = LEVELS.indexOf(sign) / (LEVELS.length - 1);
    pixels.data.set([...VEIL.slice(0, 3), VEIL[3] * (1 - value)], 4 * patch);
  });
  context.putImageData(pixels, 0, 0);
}

// Where the score crosses half of its extent: a light line inside and a dark one outside, to be seen on any image.
function drawContour(canvas, columns, rows) {
  const values = [...canvas.dataset.heat].map((sign) => LEVELS.indexOf(sign) / (LEVELS.length - 1));
  const at = (column, row) => values[
    Math.min(Math.max(row, 0), rows - 1) * columns + Math.min(Math.max(column, 0), columns - 1)];
  const isInside = (x, y) => {
    const [across, down] = [(x + 0.5) / PIXELS_PER_PATCH - 0.5, (y + 0.5) / PIXELS_PER_PATCH - 0.5];
    const [column, row] = [Math.floor(across), Math.floor(down)];
    const mix = (first, second, share) => first + (second - first) * share;
    const upper = mix(at(column, row), at(column + 1, row), across - column);
    return mix(upper, mix(at(column, row + 1), at(column + 1, row + 1), across - column), down - row) >= 0.5;
  };
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  const inside = (x, y) => isInside(
    Math.min(Math.max(x, 0), canvas.width - 1), Math.min(Math.max(y, 0), canvas.height - 1));
  for (let y = 0; y < canvas.height; y++) {
    for (let x = 0; x < canvas.width; x++) {
      const own = inside(x, y);
      if ([[3, 0], [-3, 0], [0, 3], [0, -3]].some(([right, low]) => inside(x + right, y + low) !== own)) {
        pixels.data.set(own ? [255, 255, 255, 255] : [22, 22, 58, 255], 4 * (y * canvas.width + x));
      }
    }
  }
  context.putImageData(pixels, 0, 0);
}

function drawHeat(canvas, mode) {
  canvas.dataset.columns ??= canvas.width;
  canvas.dataset.rows ??= canvas.height;
  const [columns, rows] = [Number(canvas.dataset.columns), Number(canvas.dataset.rows)];
  const scale = mode === "contour" ? PIXELS_PER_PATCH : 1;
  [canvas.width, canvas.height] = [columns * scale, rows * scale]; // clears it
  if (mode === "veil") drawVeil(canvas);
  if (mode === "contour") drawContour(canvas, columns, rows);
}

function element(name, properties, children = []) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1%";
  return (100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0) + "%";
}

function thumbnail(row) {
  return element("img", { src: `images/${row}.webp`, alt: "", loading: "lazy" });
}

function codeCard([code, name, imageRate, textRate, coherence, p, isSignificant, thumbnails], match) {
  const title = name ? element("bdi", { textContent: name, className: isSignificant ? "" : "weak" }) : element("i", { textContent: "no common word" });
  const alike = coherence === null ? "" : `${percent(coherence)} of image pairs alike, p = ${p.toFixed(3)}`;
  return element("li", {}, [element("a", { className: "card", href: `code/${code}.html` }, [
    element("span", { className: "strip" }, thumbnails.map(thumbnail)),
    element("span", { className: "title" }, [element("b", { textContent: code }), " ", title]),
    element("span", {
      className: "note", textContent: `in ${percent(imageRate)} of images, ${percent(textRate)} of captions`,
    }),
    element("span", { className: "note", textContent: alike }),
    ...(match ? [element("q", { className: "caption", dir: "auto", textContent: match })] : []),
  ])]);
}

function imageCard([row, caption, category]) {
  return element("li", {}, [element("a", { className: "card", href: `image/${row}.html` }, [
    element("span", { className: "strip one" }, [thumbnail(row)]),
    element("span", { className: "title", dir: "auto", textContent: caption }),
    element("span", { className: "note", textContent: category }),
  ])]);
}

const MODALITIES = {
  all: () => true,
  both: (row) => row[2] > 0 && row[3] > 0,
  images: (row) => row[2] > 0 && row[3] === 0,
  captions: (row) => row[2] === 0 && row[3] > 0,
};
const ORDERS = {
  match: null, // best first, see `search`; without a query as in the data, by use
  use: (a, b) => b[2] + b[3] - a[2] - a[3],
  coherence: (a, b) => (b[4] ?? -1) - (a[4] ?? -1),
  number: (a, b) => a[0] - b[0],
};

function startSearch(kind) {
  const input = document.getElementById("q");
  const results = document.getElementById("results");
  const more = document.getElementById("more");
  const modality = document.getElementById("modality");
  const order = document.getElementById("order");
  const isCode = kind === "codes";
  const card = isCode ? codeCard : imageCard;
  const captions = GALLERY.captions.map((caption) => caption.toLowerCase());
  const rows = GALLERY[kind].map((row) => ({
    row, text: (isCode ? `${row[0]} ${row[1]}` : `${row[1]} ${row[2]}`).toLowerCase(),
  }));
  let found = [];
  let shown = 0;
  results.classList.toggle("small", !isCode);

  function showMore() {
    results.append(...found.slice(shown, shown + PAGE_SIZE).map(({ row, matches }) => card(row, GALLERY.captions[matches[0]])));
    shown = Math.min(shown + PAGE_SIZE, found.length);
    more.hidden = shown === found.length;
  }
  function search() {
    const terms = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const has = (text) => terms.every((term) => text.includes(term));
    // Of a code first its name, then how many of its strongest captions have all words; its strongest is shown.
    const fits = isCode && terms.length ? captions.map(has) : [];
    found = rows.map(({ row, text }) => ({
      row, isNamed: has(text), matches: isCode ? row[8].filter((caption) => fits[caption]) : [],
    })).filter(({ isNamed, matches }) => isNamed || matches.length);
    if (isCode) {
      found = found.filter(({ row }) => MODALITIES[modality.value](row));
      const compare = ORDERS[order.value];
      found.sort((a, b) => compare ? compare(a.row, b.row)
        : b.isNamed - a.isNamed || b.matches.length - a.matches.length);
    }
    document.getElementById("count").textContent =
      `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} ${kind}`;
    results.replaceChildren();
    shown = 0;
    showMore();
  }
  input.value = new URLSearchParams(location.search).get("q") ?? "";
  input.addEventListener("input", search);
  input.form.addEventListener("submit", (event) => event.preventDefault());
  modality?.addEventListener("change", search);
  order?.addEventListener("change", search);
  more.addEventListener("click", () => {
    const next = shown;
    showMore();
    results.children[next]?.querySelector("a").focus();
  });
  search();
}

// A browser may keep nothing for files; then the choice lasts as long as the page.
function remember(key, value) {
  try {
    if (value) localStorage.setItem(key, value);
    return localStorage.getItem(key);
  } catch {
    return value;
  }
}

function showHeat(mode) {
  document.documentElement.dataset.mode = mode;
  document.querySelectorAll("canvas[data-heat]").forEach((canvas) => drawHeat(canvas, mode));
}

const radios = [...document.querySelectorAll("input[name=mode]")];
const remembered = radios.find((radio) => radio.value === remember("mode")) ?? radios[0];
if (remembered) {
  remembered.checked = true;
  showHeat(remembered.value);
}
radios.forEach((radio) => radio.addEventListener("change", () => {
  remember("mode", radio.value);
  showHeat(radio.value);
}));
document.addEventListener("keydown", (event) => {
  const isTyping = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName);
  if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    document.getElementById("q").focus();
  }
});
const search = document.querySelector("[data-search]");
// data.js comes after this file; both wait for the page.
if (search) document.addEventListener("DOMContentLoaded", () => startSearch(search.dataset.search));
