// The page of notebook 08. Everything that comes from a file is set as text, never as HTML.

const PERCENT = 100;

function create(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function button(text, onClick) {
  const element = create("button", { type: "button" }, text);
  element.addEventListener("click", onClick);
  return element;
}

function address(buffer, type) {
  return URL.createObjectURL(new Blob([buffer], { type }));
}

function slug(answer) {
  return answer.replaceAll(" ", "-");
}

function marginWords(percent) {
  if (percent === 0) {
    return "as found";
  }
  return `${Math.abs(percent)}% ${percent > 0 ? "larger" : "smaller"} on each side`;
}

// As `explanation.probability_words`.
function probabilityWords(probability) {
  if (probability < 0.01) {
    return "below 0.01";
  }
  return probability > 0.99 ? "above 0.99" : probability.toFixed(2);
}

function outcomeWords(row) {
  if (row.probability === null) {
    return row.answer;
  }
  return `${row.answer}, P ${probabilityWords(row.probability)}`;
}

// A table with a caption and a heading for every column.
function table(caption, headings, rows) {
  const head = create("tr");
  headings.forEach((text) => head.append(create("th", { scope: "col" }, text)));
  const body = create("tbody");
  for (const cells of rows) {
    const line = create("tr");
    cells.forEach((text) => line.append(create("td", {}, text)));
    body.append(line);
  }
  return create("table", {}, create("caption", {}, caption), create("thead", {}, head), body);
}

// P(pneumonia) by the margin of the box, with a mark that the slider moves.
function curve(margins, label) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 340 142");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  const first = margins[0].margin;
  const range = margins.at(-1).margin - first;
  const x = (margin) => 40 + (270 * (margin - first)) / range;
  const y = (probability) => 100 - 90 * probability;
  const draw = (tag, attributes, text = "") => {
    const element = document.createElementNS(space, tag);
    Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
    element.textContent = text;
    svg.append(element);
    return element;
  };
  for (const level of [0, 0.5, 1]) {
    draw("line", { x1: 40, x2: 310, y1: y(level), y2: y(level), class: "grid" });
    draw("text", { x: 34, y: y(level) + 4, "text-anchor": "end" }, String(level));
  }
  for (const percent of [-10, 0, 10, 20]) {
    draw("text", { x: x(percent / PERCENT), y: 119, "text-anchor": "middle" }, `${percent}%`);
  }
  draw("text", { x: 175, y: 137, "text-anchor": "middle" }, "box enlarged by, on each side");
  for (const row of margins) {
    draw("circle", { cx: x(row.margin), cy: y(row.probability), r: 3.5, class: slug(row.answer) });
  }
  const mark = draw("line", { y1: 8, y2: 102, class: "mark" });
  svg.moveTo = (margin) => {
    mark.setAttribute("x1", x(margin));
    mark.setAttribute("x2", x(margin));
  };
  return svg;
}

function placeBox(frame, [top, bottom, left, right], margin) {
  const height = margin * (1 - top - bottom);
  const width = margin * (1 - left - right);
  const share = (value) => `${PERCENT * Math.max(value, 0)}%`;
  Object.assign(frame.style, {
    top: share(top - height),
    bottom: share(bottom - height),
    left: share(left - width),
    right: share(right - width),
  });
}

// The image with the box of its lungs, and a slider that changes the box.
function boxFigure(card, explained) {
  const picture = create("img", {
    src: card.picture,
    alt: `${card.name}: the image; a frame marks the box of the lungs`,
  });
  const frame = create("div", { class: "xr-frame" });
  const figure = create("figure", {}, create("div", { class: "xr-picture" }, picture, frame));
  if (explained.margins.length === 0) {
    placeBox(frame, explained.box, 0);
    figure.append(create("figcaption", {}, "The box in which the lungs were found."));
    return figure;
  }
  const start = Math.round(explained.margin * PERCENT);
  const slider = create("input", {
    type: "range",
    min: Math.round(explained.margins[0].margin * PERCENT),
    max: Math.round(explained.margins.at(-1).margin * PERCENT),
    step: 1,
    value: start,
  });
  const output = create("output");
  const chart = curve(explained.margins, explained.on_margins);
  const move = () => {
    const percent = Number(slider.value);
    const row = explained.margins.find((other) => Math.round(other.margin * PERCENT) === percent);
    const used = percent === start ? " (as answered)" : "";
    output.textContent = `${marginWords(percent)}${used}: ${outcomeWords(row)}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    placeBox(frame, explained.box, row.margin);
    chart.moveTo(row.margin);
  };
  slider.addEventListener("input", move);
  move();
  const label = create("label", {}, "Crop: make the box of the lungs larger or smaller", slider);
  figure.append(create("figcaption", {}, label, output), chart);
  return figure;
}

function heatFigure(card, buffer, caveat) {
  const alt = `${card.name}: heat map, bright where the image speaks for pneumonia to the network`;
  const picture = create("img", { src: address(buffer, "image/png"), alt });
  return create(
    "figure",
    {},
    create("div", { class: "xr-picture" }, picture),
    create("figcaption", {}, caveat),
  );
}

function showExplanation(card, explained, buffers) {
  const target = card.explanation;
  target.replaceChildren();
  const pictures = create("div", { class: "xr-pictures" });
  if (explained.box !== null) {
    pictures.append(boxFigure(card, explained));
  }
  if (buffers.length > 0) {
    pictures.append(heatFigure(card, buffers[0], explained.caveat));
  }
  const list = create("ul");
  explained.lines.forEach((line) => list.append(create("li", {}, line)));
  target.append(pictures, list);
  if (explained.changes.length > 0) {
    const rows = explained.changes.map((row) => [
      row.change,
      row.probability === null ? "–" : probabilityWords(row.probability),
      row.answer + (row.answer === card.answer ? "" : " (another answer)"),
    ]);
    target.append(table("The image after small changes", ["change", "P", "answer"], rows));
  }
}

function showAnswer(card, message, buffers) {
  card.answer = message.answer;
  card.verdict.textContent = message.answer;
  card.verdict.className = `xr-answer ${slug(message.answer)}`;
  for (const name of ["meaning", "reason", "notice"]) {
    if (message[name]) {
      card.body.append(create("p", { class: `xr-${name}` }, message[name]));
    }
  }
  if (buffers.length === 0) {
    return;
  }
  card.picture = address(buffers[0], "image/jpeg");
  const alt = `${card.name}: the image that was given; answer: ${message.answer}`;
  card.element.prepend(create("img", { src: card.picture, alt }));
  const question = message.reason ? "What does the model see?" : "Why this answer?";
  const details = create("details", {}, create("summary", {}, question));
  details.append(card.explanation);
  details.addEventListener("toggle", () => card.ask(details), { once: true });
  card.element.append(details);
}

function render({ model, el }) {
  const facts = model.get("facts");
  const cards = new Map();
  const queue = [];
  let waiting = false;
  let given = 0;
  let answered = 0;

  const heading = document.querySelector("h1") ? "h2" : "h1";
  const status = create("p", { role: "status", "aria-live": "polite" });
  const progress = create("progress", { "aria-label": "images answered", value: 0, max: 1 });
  const list = create("ol", { class: "xr-answers", "aria-label": "answers" });
  const field = create("input", { type: "file", multiple: "", "aria-label": "images" });
  const drop = create("label", { class: "xr-field" }, field, "Choose images, or drop them here");

  function count() {
    progress.hidden = answered === given;
    progress.max = Math.max(given, 1);
    progress.value = answered;
    save.disabled = answered === 0;
    clear.disabled = given === 0 || answered < given;
  }

  function add(name, request) {
    const id = given;
    given += 1;
    const title = create(heading === "h1" ? "h2" : "h3", {}, name);
    const verdict = create("p", { class: "xr-answer" }, "waiting …");
    const body = create("div", { class: "xr-body" }, title, verdict);
    const element = create("li", {}, body);
    const explanation = create("div", {}, "One moment …");
    const ask = () => model.send({ ask: "explain", id });
    cards.set(id, { name, element, body, verdict, explanation, ask });
    list.append(element);
    queue.push({ id, name, ...request });
    count();
    next();
  }

  async function next() {
    if (waiting || queue.length === 0) {
      return;
    }
    waiting = true;
    const { file, ...message } = queue.shift();
    const fits = file && file.size <= facts.largest * 1e6;
    const content = fits ? [await file.arrayBuffer()] : [];
    model.send({ ask: "answer", ...message }, undefined, content);
  }

  function addFiles(files) {
    for (const file of files) {
      add(file.name, { file, megabytes: file.size / 1e6 });
    }
  }

  const examples = button("Try the example images", () => {
    facts.examples.forEach((name) => add(name, { example: true }));
  });
  const save = button("Download the answers (CSV)", () => model.send({ ask: "table" }));
  const clear = button("Clear", () => {
    cards.forEach((card) => URL.revokeObjectURL(card.picture));
    cards.clear();
    list.replaceChildren();
    model.send({ ask: "clear" });
    status.textContent = "";
    given = 0;
    answered = 0;
    count();
  });

  function onReply(message, buffers) {
    if (message.reply === "table") {
      const link = create("a", { href: address(message.text, "text/csv"), download: "answers.csv" });
      link.click();
      return;
    }
    const card = cards.get(message.id);
    if (message.reply === "explain") {
      showExplanation(card, message, buffers);
      return;
    }
    showAnswer(card, message, buffers);
    answered += 1;
    waiting = false;
    status.textContent = `${answered} of ${given} answered. ${card.name}: ${message.answer}.`;
    count();
    next();
  }

  field.addEventListener("change", () => {
    addFiles([...field.files]);
    field.value = "";
  });
  drop.addEventListener("dragover", (event) => event.preventDefault());
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    addFiles([...event.dataTransfer.files]);
  });
  model.on("msg:custom", onReply);

  const about = create("section", { class: "xr-about" });
  about.append(create("p", {}, create("b", {}, "The model. "), `${facts.model}. ${facts.record}`));
  const caveats = create("ul");
  facts.caveats.forEach((text) => caveats.append(create("li", {}, text)));
  about.append(caveats);

  const actions = create("div", { class: "xr-actions" });
  if (facts.examples.length > 0) {
    actions.append(examples);
  }
  actions.append(save, clear);
  const lead =
    "Give frontal chest X-rays of children, as JPEG, PNG, TIFF or DICOM, at most " +
    `${facts.largest} MB each. They stay on the machine that runs this page. `;
  el.append(
    create(
      "div",
      { class: "xr-page" },
      create(heading, {}, "Pneumonia on a chest X-ray?"),
      create("p", {}, lead, create("b", {}, "For research and teaching: not a medical device.")),
      drop,
      actions,
      create("div", { class: "xr-status" }, status, progress),
      list,
      about,
    ),
  );
  count();
  return () => model.off("msg:custom", onReply);
}

export default { render };
