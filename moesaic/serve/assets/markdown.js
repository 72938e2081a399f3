// Markdown as nodes of the page. Text only ever becomes text: nothing of it is read as HTML.
const Markdown = (() => {
  const MOST_DEPTH = 8;
  const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*)/;
  const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
  const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
  const QUOTE = /^ {0,3}>\s?/;
  const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+|$)/;
  const SEPARATOR = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
  const SIDES = { "-:": "right", "::": "middle" };
  const INLINE = new RegExp(
    [
      /(?<ticks>`+)(?<code>[^`](?:.*?[^`])?)\k<ticks>(?!`)/,
      /\*\*(?<strong>(?=\S)(?:.*?)\S)\*\*/,
      /(?<![\w*])\*(?<stress>(?=[^\s*])(?:[^*]*?)[^\s*])\*(?![\w*])/,
      /(?<![\w_])_(?<under>(?=[^\s_])(?:[^_]*?)[^\s_])_(?![\w_])/,
      /\[(?<label>[^\]\n]+)\]\((?<target>https?:\/\/[^\s()<>]+)\)/,
      /(?<url>https?:\/\/[^\s()<>"'`*]*[^\s()<>"'`*.,;:!?])/,
      /\\(?<escaped>[\\`*_{}[\]()#+.!|~>-])/,
    ]
      .map((one) => one.source)
      .join("|"),
    "s",
  );

  function element(name, ...children) {
    const made = document.createElement(name);
    made.append(...children);
    return made;
  }

  function link(label, target) {
    const made = element("a", label);
    made.href = target;
    made.target = "_blank";
    made.rel = "noopener noreferrer nofollow";
    return made;
  }

  function inline(text, depth = 0) {
    const nodes = [];
    let found;
    while (depth < MOST_DEPTH && (found = INLINE.exec(text))) {
      nodes.push(text.slice(0, found.index), marked(found.groups, depth + 1));
      text = text.slice(found.index + found[0].length);
    }
    return [...nodes, text].filter((node) => node !== "");
  }

  function marked(part, depth) {
    if (part.code !== undefined) return element("code", part.code.replace(/^ (.*) $/s, "$1"));
    if (part.strong !== undefined) return element("strong", ...inline(part.strong, depth));
    const stress = part.stress ?? part.under;
    if (stress !== undefined) return element("em", ...inline(stress, depth));
    if (part.target !== undefined) return link(part.label, part.target);
    return part.url !== undefined ? link(part.url, part.url) : part.escaped;
  }

  // Text as blocks: what each is, and its lines.
  function blocks(text) {
    const lines = text.split("\n");
    const found = [];
    for (let at = 0; at < lines.length; ) {
      if (!lines[at].trim()) {
        at += 1;
        continue;
      }
      const kind = kindOf(lines, at);
      const end = ends[kind](lines, at);
      found.push({ kind, lines: lines.slice(at, end) });
      at = end;
    }
    return found;
  }

  function kindOf(lines, at) {
    const line = lines[at];
    if (FENCE.test(line)) return "fence";
    if (HEADING.test(line)) return "heading";
    if (RULE.test(line)) return "rule";
    if (QUOTE.test(line)) return "quote";
    if (ITEM.test(line)) return "list";
    const next = lines[at + 1] ?? "";
    return line.includes("|") && next.includes("-") && SEPARATOR.test(next) ? "table" : "paragraph";
  }

  function whileLines(lines, at, goesOn) {
    let end = at + 1;
    while (end < lines.length && goesOn(lines[end], end)) end += 1;
    return end;
  }

  // Where each kind of block that begins at a line ends.
  const ends = {
    fence(lines, at) {
      const mark = FENCE.exec(lines[at])[1];
      const closes = (line) => {
        const bare = line.trim();
        return bare.length >= mark.length && bare === mark[0].repeat(bare.length);
      };
      const end = whileLines(lines, at, (line) => !closes(line));
      return Math.min(end + 1, lines.length);
    },
    heading: (lines, at) => at + 1,
    rule: (lines, at) => at + 1,
    quote: (lines, at) => whileLines(lines, at, (line) => QUOTE.test(line)),
    table: (lines, at) => whileLines(lines, at, (line) => line.includes("|")),
    list(lines, at) {
      const belongs = (line) => ITEM.test(line) || /^\s{2,}\S/.test(line);
      return whileLines(lines, at, (line, i) =>
        line.trim() ? belongs(line) : belongs(lines[i + 1] ?? ""),
      );
    },
    paragraph: (lines, at) =>
      whileLines(lines, at, (line, i) => line.trim() && kindOf(lines, i) === "paragraph"),
  };

  const build = {
    fence(lines) {
      const [, mark, language] = FENCE.exec(lines[0]);
      const last = lines.at(-1).trim();
      const isClosed = lines.length > 1 && last === mark[0].repeat(last.length) && last;
      const text = lines.slice(1, isClosed ? -1 : undefined).join("\n");
      const pre = element("pre", element("code", text));
      pre.tabIndex = 0;
      const bar = element("div", element("span", language || "text"), Page.copier(() => text));
      bar.className = "bar";
      const made = element("div", bar, pre);
      made.className = "code";
      return made;
    },
    heading([line]) {
      const [, marks, title] = HEADING.exec(line);
      return element(`h${Math.min(marks.length + 2, 6)}`, ...inline(title));
    },
    rule: () => element("hr"),
    quote: (lines, depth) =>
      element("blockquote", ...nodes(lines.map((line) => line.replace(QUOTE, "")).join("\n"), depth)),
    paragraph: (lines) => element("p", ...inline(lines.join("\n"))),
    table(lines) {
      const cells = (line) =>
        line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim());
      const sides = cells(lines[1]).map((mark) => SIDES[`${mark.at(0)}${mark.at(-1)}`] ?? "");
      const cellOf = (kind) => (text, i) => {
        const made = element(kind, ...inline(text));
        made.className = sides[i] ?? "";
        return made;
      };
      const row = (kind) => (line) => element("tr", ...cells(line).map(cellOf(kind)));
      const body = element("tbody", ...lines.slice(2).map(row("td")));
      const made = element("div", element("table", element("thead", row("th")(lines[0])), body));
      made.className = "scroll";
      return made;
    },
    list(lines, depth) {
      const [, indent, mark] = ITEM.exec(lines[0]);
      const items = [];
      for (const line of lines) {
        const found = ITEM.exec(line);
        if (found && found[1].length <= indent.length) items.push([line.slice(found[0].length)]);
        else items.at(-1).push(line);
      }
      const made = element(/\d/.test(mark) ? "ol" : "ul", ...items.map((item) => one(item, depth)));
      if (/\d/.test(mark)) made.start = parseInt(mark, 10);
      return made;
    },
  };

  // An item of a list: a line alone is no paragraph.
  function one([first, ...rest], depth) {
    const least = Math.min(...rest.filter((line) => line.trim()).map((line) => line.search(/\S/)));
    const inner = [first, ...rest.map((line) => line.slice(least))].join("\n");
    const children = nodes(inner, depth);
    if (children[0]?.tagName === "P" && !/\n\s*\n/.test(inner)) {
      return element("li", ...children[0].childNodes, ...children.slice(1));
    }
    return element("li", ...children);
  }

  function nodes(text, depth = 0) {
    if (depth > MOST_DEPTH) return [element("p", text)];
    return blocks(text).map(({ kind, lines }) => build[kind](lines, depth + 1));
  }

  // Shows a text that grows: blocks that stay as they are are left alone.
  function show(place, text) {
    const wanted = blocks(text);
    wanted.forEach(({ kind, lines }, i) => {
      const source = `${kind}\n${lines.join("\n")}`;
      const there = place.children[i];
      if (there?.source === source) return;
      const made = build[kind](lines, 1);
      made.source = source;
      if (there) there.replaceWith(made);
      else place.append(made);
    });
    while (place.children.length > wanted.length) place.lastElementChild.remove();
  }

  return { show };
})();
