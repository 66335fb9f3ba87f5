// Draws heat maps and searches the gallery. All text from data is set as text, never as markup.
"use strict";

const LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
// A veil over the image, thick where a score is lowest, gone where it is highest: red, green, blue, opacity in 255.
const VEIL = [22, 22, 58, 220];
const PAGE_SIZE = 60;

// One pixel for each patch; the browser smooths them to the image's size.
function drawHeat(canvas) {
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  [...canvas.dataset.heat].forEach((sign, patch) => {
    const value = LEVELS.indexOf(sign) / (LEVELS.length - 1);
    pixels.data.set([...VEIL.slice(0, 3), VEIL[3] * (1 - value)], 4 * patch);
  });
  context.putImageData(pixels, 0, 0);
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

function codeCard([code, name, imageRate, textRate, coherence, thumbnails]) {
  const title = name ? element("bdi", { textContent: name }) : element("i", { textContent: "no common word" });
  const alike = coherence === null ? "" : `${percent(coherence)} of image pairs alike`;
  return element("li", {}, [element("a", { className: "card", href: `code/${code}.html` }, [
    element("span", { className: "strip" }, thumbnails.map(thumbnail)),
    element("span", { className: "title" }, [element("b", { textContent: code }), " ", title]),
    element("span", {
      className: "note", textContent: `in ${percent(imageRate)} of images, ${percent(textRate)} of captions`,
    }),
    element("span", { className: "note", textContent: alike }),
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
  use: null, // as in the data
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
  const rows = GALLERY[kind].map((row) => ({
    row, text: (isCode ? `${row[0]} ${row[1]} ${row[6]}` : `${row[1]} ${row[2]}`).toLowerCase(),
  }));
  let found = [];
  let shown = 0;
  results.classList.toggle("small", !isCode);

  function showMore() {
    results.append(...found.slice(shown, shown + PAGE_SIZE).map(card));
    shown = Math.min(shown + PAGE_SIZE, found.length);
    more.hidden = shown === found.length;
  }
  function search() {
    const terms = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = rows.filter(({ text }) => terms.every((term) => text.includes(term))).map(({ row }) => row);
    if (isCode) {
      found = found.filter(MODALITIES[modality.value]);
      if (ORDERS[order.value]) found.sort(ORDERS[order.value]);
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

document.querySelectorAll("canvas[data-heat]").forEach(drawHeat);
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
