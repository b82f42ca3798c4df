"use strict";
// Each file is a request of its own, so that one that is refused has its own line. Names of files and classes are text, never HTML.
(() => {
  const AT_ONCE = 4, TOP = 5;
  const find = (id) => document.getElementById(id);
  const drop = find("drop"), input = find("files"), said = find("said"), answers = find("answers"), token = find("token");
  const waiting = [];
  let running = 0, asked = 0, answered = 0;

  const add = (parent, tag, text, className) => {
    const node = parent.appendChild(document.createElement(tag));
    if (text !== undefined) node.textContent = text;
    if (className) node.className = className;
    return node;
  };
  // Marks that turn a line, and control characters, become ?; a name from right to left is isolated (FSI, PDI), so that no figure moves.
  const TURNING = /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
  const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;
  const shown = (name) => {
    const plain = name.replace(TURNING, "?");
    return RIGHT_TO_LEFT.test(plain) ? "\u2068" + plain + "\u2069" : plain;
  };
  const percent = (share) => (share > 0.9995 && share < 1 ? "> 99.9%" : share < 0.0005 ? "< 0.1%" : (100 * share).toFixed(1) + "%");

  const show = (item, answer) => {
    const sets = answer.set && (answer.set.length ? answer.set.map(shown).join(", ") : "no class");
    const first = answer.answered === false ? "none of these" : shown(answer.class);
    add(item, "p", first, "first");
    if (sets) add(item, "p", "Set: " + sets, "soft");
    const list = add(item, "dl", undefined, "bars");
    for (const { class: name, probability } of answer.top) {
      const row = add(list, "div");
      row.style.display = "contents";
      add(row, "dt", shown(name));
      add(row, "dd", percent(probability));
      const bar = add(row, "dd", undefined, "bar");
      bar.setAttribute("aria-hidden", "true");
      add(bar, "i").style.width = 100 * probability + "%";
    }
    return first + ", " + percent(answer.probability);
  };

  const ask = async (file, item) => {
    const headers = { "Content-Type": file.type || "application/octet-stream" };
    if (token && token.value) headers.Authorization = "Bearer " + token.value;
    let line;
    try {
      const response = await fetch("predict?top_k=" + TOP, { method: "POST", headers, body: file });
      const other = () => ({ error: "A proxy answered instead of the server, with status " + response.status + "." });
      const content = await response.json().catch(other);
      if (content.predictions) {
        line = show(item, content.predictions[0]);
        answered += 1;
      } else add(item, "p", line = response.status === 401 ? "Enter the token of this server above." : content.error, "bad");
    } catch (error) {
      add(item, "p", line = "The server does not answer.", "bad");
    }
    said.textContent = shown(file.name) + ": " + line;
  };

  const finish = () => {
    const others = asked - answered;
    if (asked > 1) said.textContent = asked + " images: " + answered + " answered" + (others ? ", " + others + " not." : ".");
    asked = answered = 0;
  };

  const next = () => {
    while (running < AT_ONCE && waiting.length) {
      running += 1;
      ask(...waiting.shift()).finally(() => { running -= 1; next(); if (!running) finish(); });
    }
  };

  const take = (files) => {
    if (files.length && files !== input.files) input.files = files;  // so that the field does not say that there is none
    const items = document.createDocumentFragment();
    for (const file of files) {
      const item = add(items, "li");
      const picture = add(item, "img");
      picture.alt = "";
      picture.src = URL.createObjectURL(file);
      picture.onload = () => URL.revokeObjectURL(picture.src);
      picture.onerror = () => picture.remove();
      add(item, "h3", shown(file.name));
      waiting.push([file, item]);
    }
    answers.prepend(items);
    asked += files.length;
    if (files.length) said.textContent = files.length === 1 ? "Asking." : "Asking about " + files.length + " images.";
    next();
  };

  input.addEventListener("click", () => { input.value = ""; });  // so that the same file can be chosen again
  input.addEventListener("change", () => take(input.files));
  addEventListener("paste", (event) => take(event.clipboardData.files));
  for (const kind of ["dragover", "drop", "dragleave"]) {
    addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") take(event.dataTransfer.files);
    });
  }
  const address = new URL(".", location).href.replace(/\/$/, "");  // behind a proxy with its prefix
  for (const node of document.querySelectorAll("[data-origin]")) node.textContent = address;
})();
