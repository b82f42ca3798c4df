// The confusion matrix of a report: drawn on a canvas, zoomed, and asked for the images of a cell.
(() => {
  const data = JSON.parse(document.getElementById("confusion-data").textContent);
  const canvas = document.getElementById("confusion-canvas");
  const said = document.getElementById("confusion-cell");
  const panel = document.getElementById("confusion-images");
  const size = data.names.length;
  const rows = data.rows.map((flat) => {  // predicted class -> images, of each true class
    const counts = new Map();
    for (let i = 0; i < flat.length; i += 2) counts.set(flat[i], flat[i + 1]);
    return counts;
  });
  const images = new Map();  // cell -> its images
  for (const [cell, ...image] of data.images) images.set(cell, [...(images.get(cell) || []), image]);
  const listed = data.names.map((_, number) => number);
  const LABEL = 11, ROOM = 3;  // pixels: of a letter, between the labels and the matrix
  const LIGHT = { right: "37,99,200", wrong: "190,60,20", strong: "#fff" }, DARK = { right: "120,170,255", wrong: "255,130,80", strong: "#000" };
  const FEWEST = Math.min(4, size);  // classes that the largest zoom shows
  let order = data.order, place = placesIn(order);
  let left = 0, top = 0, shown = size;  // the part that is seen, in cells
  let cursor = null;  // [row, column] in the drawn order
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let printing = false, drawnSide = 0;

  const ruler = canvas.getContext("2d");
  ruler.font = `${LABEL}px system-ui, sans-serif`;
  const longest = [...data.names].sort((a, b) => b.length - a.length).slice(0, 20);
  const widest = Math.max(20, ...longest.map((name) => ruler.measureText(name).width));

  function placesIn(order) {
    const place = new Array(size);
    order.forEach((number, at) => { place[number] = at; });
    return place;
  }

  function layout() {
    const side = canvas.clientWidth;
    const gutter = Math.round(Math.min(widest + LABEL + 3 * ROOM, 120, side * 0.24));
    return { side, gutter, cell: (side - gutter) / shown };
  }

  function draw() {
    const { side, gutter, cell } = layout();
    const sharp = window.devicePixelRatio || 1;
    canvas.width = canvas.height = Math.round(side * sharp);
    canvas.dataset.gutter = gutter;
    drawnSide = side;
    const pen = canvas.getContext("2d");
    pen.scale(sharp, sharp);
    const ink = printing ? "#000" : getComputedStyle(canvas).color;
    pen.font = `${LABEL}px system-ui, sans-serif`;
    labels(pen, ink, gutter, cell);
    pen.save();
    pen.beginPath();
    pen.rect(gutter, gutter, side - gutter, side - gutter);
    pen.clip();
    if (cell >= 8) lines(pen, ink, gutter, cell, side);
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    const colors = dark.matches && !printing ? DARK : LIGHT;
    const wide = Math.max(cell - (cell >= 8 ? 1 : 0), 1.2);  // one image of a thousand classes is still a dot
    const fill = (row, column, count) => {
      if (column + 1 <= left || column >= left + shown) return;
      const share = count / data.support[order[row]], right = row === column;
      const strength = 0.12 + 0.88 * (right ? share : Math.sqrt(share));
      pen.fillStyle = `rgba(${right ? colors.right : colors.wrong},${strength})`;
      const x = gutter + (column - left) * cell, y = gutter + (row - top) * cell;
      if (right && cell < 8) pen.clearRect(x, y, wide, wide);
      pen.fillRect(x, y, wide, wide);
      if (cell >= 24 && pen.measureText(count).width < cell - 2) {
        pen.fillStyle = strength > 0.55 ? colors.strong : ink;
        pen.fillText(count, x + wide / 2, y + wide / 2);
      }
    };
    const inView = order.map((_, row) => row).filter((row) => row + 1 > top && row < top + shown);
    for (const row of inView) for (const [predicted, count] of rows[order[row]]) if (predicted !== order[row]) fill(row, place[predicted], count);
    for (const row of inView) if (rows[order[row]].has(order[row])) fill(row, row, rows[order[row]].get(order[row]));  // on top
    if (cursor && !printing) {
      pen.strokeStyle = ink;
      pen.lineWidth = 2;
      const ring = Math.max(cell, 6), start = (at, from) => gutter + (at - from + 0.5) * cell - ring / 2;
      pen.strokeRect(start(cursor[1], left), start(cursor[0], top), ring, ring);
    }
    pen.restore();
    pen.strokeStyle = ink;
    pen.globalAlpha = 0.4;
    pen.lineWidth = 1;
    pen.strokeRect(gutter - 0.5, gutter - 0.5, side - gutter, side - gutter);
  }

  function lines(pen, ink, gutter, cell, side) {
    pen.strokeStyle = ink;
    pen.globalAlpha = 0.1;
    pen.beginPath();
    for (let at = 0; at <= shown + 1; at++) {
      const x = gutter + (Math.floor(left) + at - left) * cell - 0.5, y = gutter + (Math.floor(top) + at - top) * cell - 0.5;
      pen.moveTo(x, gutter); pen.lineTo(x, side);
      pen.moveTo(gutter, y); pen.lineTo(side, y);
    }
    pen.stroke();
    pen.globalAlpha = 1;
  }

  function labels(pen, ink, gutter, cell) {
    pen.fillStyle = ink;
    pen.textBaseline = "middle";
    const every = Math.max(1, Math.ceil((LABEL + 2) / cell));
    const visible = (from) => {
      const found = [];
      for (let at = Math.ceil(from / every) * every; at < Math.min(size, from + shown); at += every) {
        if (at + 0.5 >= from && at + 0.5 <= from + shown) found.push(at);
      }
      return found;
    };
    pen.textAlign = "right";
    const room = gutter - LABEL - 2 * ROOM;
    for (const at of visible(top)) pen.fillText(fitted(pen, order[at], room), gutter - ROOM, gutter + (at - top + 0.5) * cell);
    pen.textAlign = "left";
    for (const at of visible(left)) {
      pen.save();
      pen.translate(gutter + (at - left + 0.5) * cell, gutter - ROOM);
      pen.rotate(-Math.PI / 2);
      pen.fillText(fitted(pen, order[at], room), 0, 0);
      pen.restore();
    }
    pen.font = `bold ${LABEL}px system-ui, sans-serif`;
    pen.textAlign = "center";
    const middle = gutter + (canvas.clientWidth - gutter) / 2;
    pen.fillText("predicted", middle, LABEL / 2 + 1);
    pen.save();
    pen.translate(LABEL / 2 + 1, middle);
    pen.rotate(-Math.PI / 2);
    pen.fillText("true", 0, 0);
    pen.restore();
    pen.font = `${LABEL}px system-ui, sans-serif`;
  }

  const fittedNames = new Map();
  function fitted(pen, number, room) {
    const key = `${number} ${Math.round(room)}`;
    if (!fittedNames.has(key)) {
      const letters = [...data.names[number]];
      let text = data.names[number];
      while (letters.length && pen.measureText(text).width > room) {
        letters.pop();
        text = `${letters.join("")}\u2026`;
      }
      fittedNames.set(key, text);
    }
    return fittedNames.get(key);
  }

  function pointed(event) {
    const box = canvas.getBoundingClientRect(), { gutter, cell } = layout();
    const row = Math.floor(top + (event.clientY - box.top - gutter) / cell);
    const column = Math.floor(left + (event.clientX - box.left - gutter) / cell);
    const inside = event.clientX - box.left >= gutter && event.clientY - box.top >= gutter;
    return inside && row < size && column < size ? [row, column] : null;
  }

  function describe(number, predicted) {
    const count = rows[number].get(predicted), support = data.support[number];
    const share = count ? `, ${(100 * count / support).toFixed(1)}% of the ${support.toLocaleString("en")} of its class` : "";
    const most = !count && data.least ? "at most " : "";  // cells with few images are left out of a large matrix
    return `true ${data.names[number]}, predicted ${data.names[predicted]}: ${most}${plural(count || data.least)}${share}`;
  }

  const plural = (count) => `${count.toLocaleString("en")} image${count === 1 ? "" : "s"}`;

  function point(cell) {
    cursor = cell;
    if (cell) said.textContent = describe(order[cell[0]], order[cell[1]]);
    draw();
  }

  function show(number, predicted) {
    const found = (images.get(number * size + predicted) || []).sort((a, b) => (a[1] < 0) - (b[1] < 0));  // those with a picture first
    const count = rows[number].get(predicted) || 0;
    const heading = document.createElement("h3"), list = document.createElement("ul");
    heading.textContent = describe(number, predicted);
    list.className = "thumbs";
    for (const [probability, thumb, name] of found) {
      const item = document.createElement("li"), text = document.createElement("span");
      if (thumb >= 0) {
        const picture = document.createElement("span");
        picture.className = `thumb t${thumb}`;
        picture.setAttribute("role", "img");
        picture.setAttribute("aria-label", name);
        item.append(picture);
      } else item.className = "plain";
      text.textContent = `${name}, ${(probability / 10).toFixed(1)}%`;
      item.append(text);
      list.append(item);
    }
    panel.replaceChildren(heading, list);
    if (count > found.length) {
      const more = document.createElement("p");
      more.textContent = `${found.length ? "and " : ""}${plural(count - found.length)}${found.length ? " more" : ""}, named in predictions.parquet`;
      panel.append(more);
    }
  }

  function look(newLeft, newTop, newShown) {
    shown = Math.min(size, Math.max(FEWEST, newShown));
    left = Math.min(size - shown, Math.max(0, newLeft));
    top = Math.min(size - shown, Math.max(0, newTop));
    canvas.style.touchAction = shown < size ? "none" : "pan-y";
    draw();
  }

  function zoom(factor, at) {  // at: [x, y] as shares of what is seen, which stays where it is
    const now = Math.min(size, Math.max(FEWEST, shown / factor));
    look(left + at[0] * (shown - now), top + at[1] * (shown - now), now);
  }

  function shareAt(x, y) {
    const box = canvas.getBoundingClientRect(), { side, gutter } = layout();
    const share = (value) => Math.min(1, Math.max(0, (value - gutter) / (side - gutter)));
    return [share(x - box.left), share(y - box.top)];
  }

  canvas.addEventListener("wheel", (event) => {  // without the focus the wheel scrolls the page
    if (!event.ctrlKey && document.activeElement !== canvas) return;
    if (event.deltaY > 0 && shown >= size) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 300), shareAt(event.clientX, event.clientY));
  }, { passive: false });

  const fingers = new Map();
  let moved = 0;
  const spread = () => { const [a, b] = [...fingers.values()]; return Math.hypot(a.x - b.x, a.y - b.y); };
  canvas.addEventListener("pointerdown", (event) => {
    if (!fingers.size) moved = 0;
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) { point(pointed(event)); return; }
    const was = fingers.size === 2 ? spread() : 0, { cell } = layout();
    const dx = event.clientX - before.x, dy = event.clientY - before.y;
    moved += Math.abs(dx) + Math.abs(dy);
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (was) {
      const [a, b] = [...fingers.values()];
      zoom(spread() / was, shareAt((a.x + b.x) / 2, (a.y + b.y) / 2));
    } else if (moved > 4) look(left - dx / cell, top - dy / cell, shown);
  });
  canvas.addEventListener("pointerup", (event) => {
    fingers.delete(event.pointerId);
    const cell = moved > 4 ? null : pointed(event);
    if (cell) { point(cell); show(order[cell[0]], order[cell[1]]); }
  });
  canvas.addEventListener("pointercancel", (event) => fingers.delete(event.pointerId));

  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (step) {
      const from = cursor || [Math.floor(top), Math.floor(left)];
      const to = cursor ? from.map((at, axis) => Math.min(size - 1, Math.max(0, at + step[axis]))) : from;
      const inView = (at, start) => Math.min(at, Math.max(start, at + 1 - shown));
      look(inView(to[1], left), inView(to[0], top), shown);
      point(to);
    } else if (event.key === "+" || event.key === "=") zoomAtCursor(1.5);
    else if (event.key === "-") zoomAtCursor(1 / 1.5);
    else if (event.key === "0") look(0, 0, size);
    else if (event.key === "Enter" && cursor) show(order[cursor[0]], order[cursor[1]]);
    else return;
    event.preventDefault();
  });
  function zoomAtCursor(factor) {
    zoom(factor, cursor ? [(cursor[1] + 0.5 - left) / shown, (cursor[0] + 0.5 - top) / shown] : [0.5, 0.5]);
  }

  const act = { in: () => zoomAtCursor(1.5), out: () => zoomAtCursor(1 / 1.5), whole: () => look(0, 0, size) };
  for (const button of document.querySelectorAll("[data-zoom]")) button.addEventListener("click", act[button.dataset.zoom]);
  document.getElementById("confusion-order").addEventListener("change", (event) => {
    order = event.target.value === "listed" ? listed : data.order;
    place = placesIn(order);
    cursor = null;
    draw();
  });
  for (const button of document.querySelectorAll("[data-cell]")) {
    button.addEventListener("click", () => {
      const [number, predicted] = button.dataset.cell.split(",").map(Number);
      show(number, predicted);
      panel.scrollIntoView({ block: "center" });
    });
  }

  new ResizeObserver(() => { if (canvas.clientWidth !== drawnSide) draw(); }).observe(canvas);
  dark.addEventListener("change", draw);
  for (const [name, now] of [["beforeprint", true], ["afterprint", false]]) {
    addEventListener(name, () => { printing = now; draw(); });
  }
  look(0, 0, size);
})();
