// A page of a shop, rendered by React on the server for every request: deno run page.js PORT ITEMS
// page.js measure ITEMS prints how long one rendering takes, in microseconds, as JSON.
import { createContext, createElement as h, useContext, useId, useMemo } from "react";
import { renderToString } from "react-dom/server";

const WARM_UP = 2000;
const CHUNKS = 7;
const CHUNK = 300;
const Currency = createContext("");
const CATEGORIES = ["books", "tools", "garden", "music", "kitchen"];

function Stars({ count }) {
  return h("i", { title: `${count} of 5` }, "*".repeat(count));
}

function Price({ cents }) {
  return h("b", null, useContext(Currency), " ", (cents / 100).toFixed(2));
}

function Column({ children }) {
  const currency = useContext(Currency);
  return h(Currency.Provider, { value: currency }, children);
}

function Stock({ left }) {
  if (left >= 3) return null;
  return h("em", null, left, " left");
}

function Item({ item }) {
  const label = useMemo(() => item.name.toUpperCase(), [item.name]);
  return h(
    "li",
    { id: useId() },
    h(Column, null, h("a", { href: `/items/${item.id}` }, label)),
    h(Column, null, h(Stars, { count: item.stars }), h(Price, { cents: item.cents })),
    h(Column, null, h(Stock, { left: item.left }), h("button", { disabled: item.left === 0 }, "Buy")),
  );
}

function Navigation({ path }) {
  const link = (name) => h("a", { key: name, href: `/${name}`, "aria-current": path === `/${name}` }, name);
  return h("nav", null, CATEGORIES.map(link));
}

function Page({ path, items }) {
  const total = items.reduce((sum, item) => sum + item.cents, 0);
  const document = h(
    "html",
    { lang: "en" },
    h("head", null, h("meta", { charSet: "utf-8" }), h("title", null, "Shop")),
    h(
      "body",
      null,
      h(Navigation, { path }),
      h("h1", null, items.length, " things you may like"),
      h("ul", null, items.map((item) => h(Item, { key: item.id, item }))),
      h("footer", null, "All of it: ", h(Price, { cents: total })),
    ),
  );
  return h(Currency.Provider, { value: "EUR" }, document);
}

function makeItems(count) {
  return Array.from({ length: count }, (_, id) => ({
    id,
    name: `${CATEGORIES[id % CATEGORIES.length]} & more, ${id}`,
    stars: (id * 3) % 6,
    cents: 199 + ((id * 7919) % 10000),
    left: (id * 5) % 9,
  }));
}

const [first, second] = Deno.args;
const items = makeItems(Number(second));
const render = (path) => `<!doctype html>${renderToString(h(Page, { path, items }))}`;

function median(numbers) {
  return numbers.sort((a, b) => a - b)[Math.floor(numbers.length / 2)];
}

function timeOne() {
  const begin = performance.now();
  render("/books");
  return (performance.now() - begin) * 1000;
}

if (first === "measure") {
  for (let i = 0; i < WARM_UP; i++) render("/books");
  // The best of some chunks: whatever else runs on the machine makes a rendering slower, never faster.
  const chunks = Array.from({ length: CHUNKS }, () => median(Array.from({ length: CHUNK }, timeOne)));
  console.log(JSON.stringify({ p50_us: Math.min(...chunks), bytes: new TextEncoder().encode(render("/books")).length }));
} else {
  const headers = { "content-type": "text/html; charset=utf-8" };
  Deno.serve({ port: Number(first) }, (request) => new Response(render(new URL(request.url).pathname), { headers }));
}
