// The conversation, and what it asks of the server that the page came from.
const Page = (() => {
  const byId = (id) => document.getElementById(id);
  const [model, message, send, log, problem] = ["model", "message", "send", "log", "problem"].map(byId);
  const KEPT = ["system", "temperature", "max-tokens", "key"];
  let turns = [];
  let writing = null; // what stops the answer that is being written
  let loading = false; // whether the models are being asked for

  class Refused extends Error {
    constructor(status, told, key) {
      const wrong = key ? "The API key is wrong." : "The server asks for an API key.";
      super(status === 401 ? wrong : told?.message || `The server answered with status ${status}.`);
      this.status = status;
      this.code = told?.code;
    }
  }

  // ---- the server -------------------------------------------------------------------------

  async function request(path, options = {}) {
    const key = byId("key").value.trim();
    const headers = { ...(options.body && { "Content-Type": "application/json" }) };
    if (key) headers.Authorization = `Bearer ${key}`;
    let response;
    try {
      response = await fetch(path, { ...options, headers, credentials: "omit", cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server cannot be reached. Is it still running?");
    }
    if (response.ok) return response;
    const told = await response.json().catch(() => null);
    throw new Refused(response.status, told?.error, key);
  }

  async function* events(response) {
    const decoder = new TextDecoder();
    const reader = response.body.getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read().catch((error) => {
        if (error.name === "AbortError") throw error;
        return { done: true };
      });
      if (done) throw new Error("The connection was lost before the answer ended.");
      const parts = (rest + decoder.decode(value, { stream: true })).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        if (!part.startsWith("data: ")) continue;
        if (part === "data: [DONE]") return;
        const event = JSON.parse(part.slice(6));
        if (event.error) throw new Refused(200, event.error);
        yield event;
      }
    }
  }

  function asked() {
    const system = byId("system").value.trim();
    const most = byId("max-tokens").valueAsNumber;
    const temperature = byId("temperature").valueAsNumber;
    return {
      model: model.value,
      messages: [...(system ? [{ role: "system", content: system }] : []), ...turns],
      stream: true,
      stream_options: { include_usage: true },
      ...(Number.isNaN(temperature) ? {} : { temperature }),
      ...(Number.isNaN(most) ? {} : { max_tokens: most }),
    };
  }

  async function loadModels() {
    if (loading) return;
    loading = true;
    try {
      const { data } = await (await request("v1/models")).json();
      const names = data.map((one) => one.id);
      const chosen = names.includes(model.value) ? model.value : names[0];
      model.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
      model.disabled = false;
      nameModel();
      if (problem.dataset.from === "models") tell(null);
    } catch (error) {
      tell(error, "models");
    }
    loading = false;
    refresh();
  }

  // ---- what is shown ----------------------------------------------------------------------

  function button(label, act, title) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = label;
    if (title) made.title = title;
    made.addEventListener("click", act);
    return made;
  }

  function copier(text) {
    const made = button("Copy", async () => {
      made.textContent = (await copied(text())) ? "Copied" : "Select and copy it by hand";
      setTimeout(() => (made.textContent = "Copy"), 1500);
    });
    return made;
  }

  async function copied(text) {
    if (navigator.clipboard) {
      return navigator.clipboard.writeText(text).then(() => true, () => false);
    }
    const place = document.createElement("textarea"); // without TLS there is no clipboard
    place.value = text;
    document.body.append(place);
    place.select();
    const done = document.execCommand("copy");
    place.remove();
    return done;
  }

  function block(name, text = "") {
    const made = document.createElement("div");
    made.className = name;
    made.textContent = text;
    return made;
  }

  // A turn on the page: its text, and a line below with what can be done with it.
  function addTurn(role, text) {
    const turn = block(`turn ${role}`);
    const who = document.createElement("span");
    who.className = "hidden";
    who.textContent = role === "user" ? "You said:" : "Answer:";
    turn.append(who, block("said", role === "user" ? text : ""), block("foot"));
    log.append(turn);
    const at = log.children.length - 1;
    const foot = turn.querySelector(".foot");
    if (role === "user") {
      foot.append(copier(() => turns[at].content), button("Edit", () => edit(at), "Ask otherwise"));
    } else {
      show(turn, text);
    }
    return turn;
  }

  function show(turn, text) {
    Markdown.show(turn.querySelector(".said"), text);
  }

  // The line below an answer that has ended.
  function finish(turn, note) {
    const at = [...log.children].indexOf(turn);
    turn.classList.remove("writing");
    const told = document.createElement("span");
    told.className = "note";
    told.textContent = note;
    const again = button("Again", () => answerAgain(at), "Write another answer");
    turn.querySelector(".foot").replaceChildren(copier(() => turns[at].content), again, told);
  }

  function tell(error, from = "") {
    problem.hidden = !error;
    problem.dataset.from = from;
    problem.replaceChildren();
    if (!error) return;
    const line = document.createElement("p");
    line.textContent = error.message;
    problem.append(line);
    if (error.status === 401) askForKey();
    problem.scrollIntoView({ block: "nearest" });
  }

  function askForKey() {
    byId("key-field").hidden = false;
    showSettings(true);
    byId("key").focus();
  }

  function showSettings(shown) {
    byId("settings").hidden = !shown;
    byId("show-settings").setAttribute("aria-expanded", String(shown));
  }

  function nameModel() {
    byId("welcome-name").textContent = model.value || "the model";
  }

  function refresh() {
    send.textContent = writing ? "Stop" : "Send";
    send.classList.toggle("stops", Boolean(writing));
    send.disabled = !writing && (!message.value.trim() || model.disabled);
    log.querySelectorAll(".foot button").forEach((one) => (one.disabled = Boolean(writing)));
    if (CSS.supports("field-sizing", "content")) return;
    message.style.height = "auto";
    message.style.height = `${message.scrollHeight + 2}px`;
  }

  // Calls a function for the next picture, and keeps the end in view if it was.
  function follower(draw) {
    const place = byId("scroll");
    let asked = 0;
    return (now) => {
      const next = () => {
        asked = 0;
        const atEnd = place.scrollHeight - place.scrollTop - place.clientHeight < 60;
        draw();
        if (atEnd) place.scrollTop = place.scrollHeight;
      };
      cancelAnimationFrame(asked);
      if (now) next();
      else asked = requestAnimationFrame(next);
    };
  }

  // ---- turns ------------------------------------------------------------------------------

  async function ask() {
    const said = message.value.trim();
    if (writing || !said || model.disabled) return;
    message.value = "";
    turns.push({ role: "user", content: said });
    addTurn("user", said);
    byId("scroll").scrollTop = byId("scroll").scrollHeight;
    await answer();
  }

  async function answer() {
    tell(null);
    const turn = addTurn("assistant", "");
    turn.classList.add("writing");
    const mine = (writing = new AbortController());
    const written = { text: "", tokens: 0, began: performance.now(), first: 0, last: 0, end: "" };
    const draw = follower(() => show(turn, written.text));
    refresh();
    byId("status").textContent = "The answer is being written.";
    let failure = null;
    try {
      await read(written, draw, mine.signal);
    } catch (error) {
      if (error.name === "AbortError") written.end = "stopped";
      else failure = error;
    }
    if (writing !== mine) return; // another conversation was begun
    writing = null;
    close(turn, written, failure, draw);
  }

  async function read(written, draw, signal) {
    const options = { method: "POST", body: JSON.stringify(asked()), signal };
    for await (const event of events(await request("v1/chat/completions", options))) {
      const choice = event.choices[0];
      if (event.usage) written.counted = event.usage.completion_tokens;
      if (!choice) continue;
      if (choice.finish_reason === "length") written.end = "cut off at the most tokens";
      if (!choice.delta.content) continue;
      written.last = performance.now();
      written.first ||= written.last;
      written.tokens += 1;
      written.text += choice.delta.content;
      draw();
    }
  }

  // Ends a turn: an answer stays as far as it came; a message that got none goes back.
  function close(turn, written, failure, draw) {
    if (written.text || (!failure && written.end !== "stopped")) {
      turns.push({ role: "assistant", content: written.text });
      draw(true);
      finish(turn, figures(written));
    } else {
      turn.remove();
      takeBack(turns.length - 1);
    }
    tell(failure);
    keep();
    refresh();
    byId("status").textContent = failure ? "" : `The answer is ${written.end || "complete"}.`;
    if (failure?.code === "model_not_found") loadModels();
    if (failure?.status !== 401) message.focus({ preventScroll: true });
  }

  function figures(written) {
    const tokens = written.counted ?? written.tokens;
    const seconds = (written.last - written.first) / 1000;
    const told = [tokens === 1 ? "1 token" : `${tokens} tokens`];
    if (tokens > 1 && seconds > 0) told.push(`${((tokens - 1) / seconds).toFixed(1)} tokens/s`);
    if (written.first) told.push(`first after ${((written.first - written.began) / 1000).toFixed(2)} s`);
    const end = written.end || (written.text ? "" : "nothing was said");
    return [...told, ...(end ? [end] : [])].join(" · ");
  }

  function cut(at) {
    turns = turns.slice(0, at);
    while (log.children.length > at) log.lastElementChild.remove();
    tell(null);
    keep();
  }

  // Removes a message and what came after it, and has it written again unless something is there.
  function takeBack(at) {
    const { content } = turns[at];
    cut(at);
    if (!message.value.trim()) message.value = content;
  }

  function edit(at) {
    message.value = "";
    takeBack(at);
    refresh();
    message.focus();
  }

  function answerAgain(at) {
    cut(at);
    answer();
  }

  function fresh() {
    writing?.abort();
    writing = null;
    cut(0);
    loadModels();
    message.focus();
  }

  // ---- what stays until the tab is closed -------------------------------------------------

  function keep() {
    const settings = Object.fromEntries(KEPT.map((id) => [id, byId(id).value]));
    try {
      sessionStorage.setItem("chat", JSON.stringify({ turns, settings, model: model.value }));
    } catch {
      // no room, or not allowed: the page works without
    }
  }

  function restore() {
    let kept = null;
    try {
      kept = JSON.parse(sessionStorage.getItem("chat"));
    } catch {
      // not allowed
    }
    if (!kept) return;
    for (const id of KEPT) byId(id).value = kept.settings[id];
    byId("key-field").hidden = !kept.settings.key;
    model.replaceChildren(new Option(kept.model, kept.model));
    turns = kept.turns;
    for (const { role, content } of turns) {
      const turn = addTurn(role, content);
      if (role === "assistant") finish(turn, "");
    }
    byId("scroll").scrollTop = byId("scroll").scrollHeight;
  }

  // ---- keys and buttons -------------------------------------------------------------------

  function onKey(event) {
    const isTouch = matchMedia("(pointer: coarse)").matches; // there a new line has no other key
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || isTouch) return;
    event.preventDefault();
    ask();
  }

  function begin() {
    restore();
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (writing) writing.abort();
      else ask();
    });
    byId("settings").addEventListener("submit", (event) => event.preventDefault());
    byId("settings").addEventListener("change", keep);
    byId("key").addEventListener("change", loadModels);
    byId("show-settings").addEventListener("click", () => showSettings(byId("settings").hidden));
    byId("fresh").addEventListener("click", fresh);
    model.addEventListener("change", () => (nameModel(), keep()));
    message.addEventListener("input", refresh);
    message.addEventListener("keydown", onKey);
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && writing) writing.abort();
    });
    window.addEventListener("focus", () => {
      if (!writing && !document.activeElement.closest("#settings")) loadModels();
    });
    loadModels();
  }

  document.addEventListener("DOMContentLoaded", begin);
  return { copier };
})();
