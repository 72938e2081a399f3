"use strict";
// What the page does: draws its figures, changes its theme, saves files, and asks for news when it
// is served while runs are going.

const Page = (() => {
  const content = JSON.parse(document.getElementById("report-data").textContent);
  const PRINTED = 680; // pixels that a chart is wide on paper
  let figures = new Map();

  function draw(width) {
    for (const element of document.querySelectorAll(".drawing")) {
      const figure = figures.get(element.dataset.figure);
      if (figure) Charts.show(figure, element, width ?? element.clientWidth);
    }
  }

  function take(list) {
    figures = new Map(list.map((figure) => [figure.id, figure]));
    draw();
  }

  function save(name, text, type) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  document.addEventListener("click", ({ target }) => {
    const { csv, file } = target.dataset ?? {};
    if (csv) save(`${csv}.csv`, Charts.csv(figures.get(csv)), "text/csv");
    if (file) save(file, target.closest("details").querySelector("pre").textContent, "text/plain");
  });

  const root = document.documentElement;
  const stored = { get: () => null, set: () => {} };
  try {
    stored.get = () => localStorage.getItem("moesaic-theme");
    stored.set = (theme) => localStorage.setItem("moesaic-theme", theme);
    if (stored.get()) root.dataset.theme = stored.get();
  } catch { /* a page opened from a file may have nowhere to keep it */ }
  document.getElementById("theme").addEventListener("click", () => {
    const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = isDark ? "light" : "dark";
    try { stored.set(root.dataset.theme); } catch { /* the same */ }
  });

  let width = root.clientWidth, waiting;
  addEventListener("resize", () => {
    if (root.clientWidth === width) return;
    width = root.clientWidth;
    clearTimeout(waiting);
    waiting = setTimeout(() => draw(), 120);
  });
  addEventListener("beforeprint", () => {
    draw(PRINTED);
    document.querySelectorAll("details.reading").forEach((one) => { one.open = true; });
  });
  addEventListener("afterprint", () => draw());

  // Replaces the sections that changed; what a reader has opened in the others stays open.
  function update(news) {
    const main = document.getElementById("main"), contents = document.getElementById("contents");
    document.getElementById("subtitle").textContent = news.subtitle;
    const sections = news.sections.map(({ id, title, html }) => {
      const old = document.getElementById(id);
      if (old && old.dataset.html === html) return old;
      const made = document.createElement("section");
      made.id = id;
      made.dataset.html = html;
      made.setAttribute("aria-labelledby", `${id}-title`);
      made.innerHTML = `<h2 id="${id}-title"></h2>${html}`; // made by the template, escaped there
      made.querySelector("h2").textContent = title;
      const opened = new Set([...(old?.querySelectorAll("details") ?? [])].filter((one) => one.open).map((one) => one.querySelector("summary").textContent));
      made.querySelectorAll("details").forEach((one) => { one.open ||= opened.has(one.querySelector("summary").textContent); });
      return made;
    });
    main.replaceChildren(...sections);
    contents.replaceChildren(...news.sections.map(({ id, title }) => {
      const item = document.createElement("li"), link = document.createElement("a");
      link.href = `#${id}`;
      link.textContent = title;
      item.append(link);
      return item;
    }));
    take(news.figures);
  }

  async function watch(seconds) {
    const state = document.getElementById("state");
    let last = "";
    for (;;) {
      await new Promise((done) => setTimeout(done, 1000 * seconds));
      try {
        const answer = await fetch("content.json", { cache: "no-store" });
        const text = await answer.text();
        if (answer.ok && text !== last) update(JSON.parse(text));
        if (answer.ok) last = text;
        state.textContent = ` · live, ${new Date().toLocaleTimeString()}`;
      } catch {
        state.textContent = " · no longer served; this is the last that was known";
      }
    }
  }

  take(content.figures);
  if (content.live) watch(content.live);

  return { update };
})();
