"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));

  // Legend: a click hides or shows a method in every plot.
  const legend = all(".legend button[data-key]");
  const press = (button, shown) => {
    button.setAttribute("aria-pressed", String(shown));
    for (const mark of all("." + button.dataset.key)) mark.classList.toggle("gone", !shown);
  };
  for (const button of legend) {
    button.addEventListener("click", () => press(button, button.getAttribute("aria-pressed") !== "true"));
  }
  for (const button of all(".legend button[data-all]")) {
    button.addEventListener("click", () => legend.forEach((one) => press(one, button.dataset.all === "show")));
  }

  // Tables: a click on a column sorts by it, another the other way round; rows without a value stay last.
  const value = (row, column) => {
    const cell = row.children[column];
    return "text" in cell.dataset ? cell.dataset.text : "value" in cell.dataset ? Number(cell.dataset.value) : null;
  };
  for (const table of all("table.sortable")) {
    all("thead button", table).forEach((button) => {
      const head = button.closest("th");
      button.addEventListener("click", () => {
        const column = Array.from(head.parentNode.children).indexOf(head);
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = Array.from(table.tBodies[0].rows);
        const sign = down ? -1 : 1;
        rows.sort((a, b) => {
          const [x, y] = [value(a, column), value(b, column)];
          if (x === null || y === null) return (x === null) - (y === null);
          return sign * (typeof x === "string" ? x.localeCompare(String(y)) : x - y);
        });
        table.tBodies[0].append(...rows);
      });
    });
  }

  // Filters of a table: rows whose data-... differ from what is chosen are hidden.
  for (const box of all(".filters[data-table]")) {
    const rows = () => Array.from(byId(box.dataset.table).tBodies[0].rows);
    const chosen = all("select", box);
    for (const select of chosen) {
      const values = [...new Set(rows().map((row) => row.dataset[select.name]))];
      if (values.length < 2) select.closest("label").hidden = true;
      for (const text of values) select.add(new Option(text, text, false, text === select.dataset.first));
    }
    const count = box.querySelector("output");
    const apply = () => {
      let shown = 0;
      for (const row of rows()) {
        row.hidden = chosen.some((select) => select.value && row.dataset[select.name] !== select.value);
        shown += !row.hidden;
      }
      count.textContent = `${shown} of ${rows().length} rows`;
    };
    box.addEventListener("change", apply);
    apply();
  }

  // Questions.
  const questions = JSON.parse(byId("questions-data").textContent);
  const { runs } = JSON.parse(byId("page-data").textContent);
  if (!questions.length) return;
  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const filters = Object.fromEntries(["task", "method", "setting", "run"].map((name) => [name, byId("by-" + name)]));
  const wrong = byId("by-wrong");
  const list = byId("question");
  const fill = (select, values) => {
    for (const text of values) select.add(new Option(text, text));
    if (values.length < 2) select.closest("label").hidden = true;
  };
  const answers = questions.flatMap((question) => question.answers);
  fill(filters.task, [...new Set(questions.map((question) => question.task))]);
  fill(filters.method, [...new Set(answers.map((answer) => answer.method))].sort());
  fill(filters.setting, [...new Set(answers.map((answer) => answer.setting))]);
  fill(filters.run, runs);

  const kept = (question) =>
    filters.task.value && question.task !== filters.task.value
      ? []
      : question.answers.filter(
          (answer) =>
            (!filters.method.value || answer.method === filters.method.value) &&
            (!filters.setting.value || answer.setting === filters.setting.value) &&
            (!filters.run.value || runs[answer.run] === filters.run.value) &&
            !(wrong.checked && answer.right),
        );

  const describe = (question, shown) => {
    const right = shown.filter((answer) => answer.right).length;
    const level = question.level === null ? "" : `, difficulty ${question.level}`;
    const score = wrong.checked ? `${shown.length} wrong` : `${right} of ${shown.length} right`;
    return `${question.task} / ${question.item}${level}: ${score}`;
  };

  const closed = {
    natural: "the model closed the thought itself",
    steered: "closed, steered: guidance tipped it",
    early: "closed by an early exit",
    forced: "cut: the close was forced",
    none: "no close",
  };

  const card = (answer, open) => {
    const box = make("details", "answer");
    box.open = open;
    const head = make("summary");
    const name = runs.length > 1 ? `${answer.method} · ${runs[answer.run]}` : answer.method;
    head.append(make("strong", "", name), make("span", "", answer.setting));
    head.append(make("span", answer.right ? "right" : "wrong", answer.right ? "✓ right" : "✗ wrong"));
    const limit = answer.limit === null ? "" : ` of ${answer.limit}`;
    head.append(make("span", "soft", `thought ${answer.tokens[0]}${limit} tokens, ${answer.close}`));
    head.append(make("span", "soft", answer.seed === -1 ? "greedy" : `seed ${answer.seed}`));
    box.append(head);
    const fillIn = () => {
      if (box.childElementCount > 1) return;
      const marked = answer.steered ? `, ${answer.steered} steered ${answer.steered > 1 ? "spans" : "span"} marked` : "";
      box.append(make("h4", "", `Thought${marked}`));
      const thought = make("div", "thought");
      thought.tabIndex = 0;
      answer.thought.forEach((text, place) => {
        if (text) thought.append(place % 2 ? make("mark", "", text) : document.createTextNode(text));
      });
      if (!answer.thought.join("")) thought.append(make("span", "soft", "(no thought)"));
      thought.append(document.createTextNode("\n"), make("span", "close", `${closed[answer.close] ?? answer.close} at token ${answer.tokens[0]}`));
      box.append(thought, make("h4", "", "Answer"), make("div", "given", answer.answer || "(none)"));
      const told = make("dl");
      const row = (term, text) => told.append(make("dt", "", term), make("dd", "", text));
      row("tokens", `${answer.tokens[0]} thinking, ${answer.tokens[1]} answer, ${answer.tokens[2]} overhead`);
      row("limit", answer.limit === null ? "none" : `${answer.limit} thinking tokens`);
      if (answer.predicted !== null) row("predicted length", `${answer.predicted} tokens`);
      if (answer.score !== Number(answer.right)) row("score", String(answer.score));
      if (answer.leaked) row("leaked", "markers of a thought stand in the answer");
      box.append(told);
    };
    box.addEventListener("toggle", fillIn);
    if (open) fillIn();
    return box;
  };

  const show = () => {
    const question = questions[Number(list.value)];
    const place = byId("answers");
    place.replaceChildren();
    byId("asked").replaceChildren();
    byId("before").disabled = list.selectedIndex < 1;
    byId("after").disabled = list.selectedIndex >= list.options.length - 1;
    if (!question || list.value === "") {
      place.append(make("p", "", "No answer fits these filters."));
      return;
    }
    byId("asked").append(
      make("h3", "", "Question"), make("div", "asked", question.prompt),
      make("h3", "", "Expected answer"), make("div", "given", question.expected),
      make("h3", "", "Answers"),
    );
    const shown = kept(question);
    place.append(...shown.map((answer, at) => card(answer, at === 0)));
  };

  const refill = () => {
    const before = list.value;
    list.replaceChildren();
    questions.forEach((question, at) => {
      const shown = kept(question);
      if (shown.length) list.add(new Option(describe(question, shown), String(at), false, String(at) === before));
    });
    byId("found").textContent = `${list.options.length} questions`;
    show();
  };
  const step = (by) => {
    list.selectedIndex += by;
    show();
  };
  for (const control of [...Object.values(filters), wrong]) control.addEventListener("change", refill);
  list.addEventListener("change", show);
  byId("before").addEventListener("click", () => step(-1));
  byId("after").addEventListener("click", () => step(1));
  refill();
})();
