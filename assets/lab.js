// Behaviour of the page: figures, answer panes, the rail, and what is blurred until clicked.
// Python sends data, this file makes DOM. Model text only ever enters through textContent.
"use strict";

window.lab = (() => {
  const el = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "class") node.className = value;
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  };

  // Preferences of this browser. Storage may be forbidden; then they last as long as the page.
  const remembered = {};
  const remember = (key, value) => {
    remembered[key] = value;
    try { localStorage.setItem(`tvaccine-${key}`, value); } catch { /* private mode */ }
  };
  const recall = (key) => {
    if (key in remembered) return remembered[key];
    try { return localStorage.getItem(`tvaccine-${key}`); } catch { return null; }
  };

  // News of the run that the page watches: what changed is asked for once per second while work goes on, and then no more.

  const POLL_MS = 1000;
  const HIDDEN_POLL_MS = 5000;
  const PATIENCE_MS = 30000;
  const values = new Map(); // newest value of each element
  const drawers = new Map(); // functions that draw it; a screen's elements come when it is first opened
  let watched = null; // { run, attack, look }, once the page knows it
  let refresh = () => {};
  let seen = "";
  let more = false;
  let looked = ""; // the state of the rest of the page for which a refresh was asked for last
  let failures = 0;
  let asking = false;
  let askAgain = false;
  let timer = 0;

  const take = (news) => {
    seen = news.seen ?? "";
    more = news.more;
    for (const [name, value] of Object.entries(news.values ?? {})) {
      values.set(name, value);
      redraw(name);
    }
    if (news.gone || (news.look !== watched.look && news.look !== looked)) {
      looked = news.look;
      refresh();
    }
  };
  const ask = async () => {
    if (!watched) return;
    if (asking) { askAgain = true; return; }
    asking = true;
    askAgain = false;
    clearTimeout(timer);
    const { run, attack, sweep } = watched;
    let news = null;
    try {
      const answer = await fetch(`lab/news?${new URLSearchParams({ run, attack, sweep, seen })}`, { signal: AbortSignal.timeout(PATIENCE_MS) });
      if (!answer.ok) throw new Error(`lab/news: ${answer.status}`);
      if (answer.status !== 204) news = await answer.json();
      failures = 0;
    } catch { failures += 1; } // the server is busy, restarts or is gone; it is asked again, less and less often
    asking = false;
    if (news && run === watched.run && attack === watched.attack && sweep === watched.sweep) take(news);
    if (askAgain) { ask(); return; }
    if (!more && !failures) return;
    const pause = failures ? Math.min(10, 2 ** failures) * POLL_MS : document.hidden ? HIDDEN_POLL_MS : POLL_MS;
    timer = setTimeout(ask, pause * (0.85 + 0.3 * Math.random())); // a room that came at once must not ask at once for ever
  };
  const watchRun = (next) => {
    const same = watched && ["run", "attack", "sweep"].every((name) => watched[name] === next[name]);
    watched = next;
    if (same) return;
    seen = looked = "";
    ask();
  };
  // What a figure, block or rail draws itself from: the newest value, and a way to be told of the next. Of a value that
  // is one for each of several things, `{ of: chooser, by: { id: value } }`, it is the one chosen there.
  const chosen = {};
  const MANY_OPTIONS = 8; // more become a menu
  const live = (name) => {
    const source = {
      get value() {
        const value = values.get(name);
        return value?.by ? value.by[chosen[value.of]] ?? Object.values(value.by)[0] : value;
      },
    };
    const onNews = (_, draw) => {
      if (!drawers.has(name)) drawers.set(name, new Set());
      drawers.get(name).add(draw);
    };
    return [source, onNews];
  };
  const redraw = (name) => {
    for (const draw of drawers.get(name) ?? []) {
      try { draw(); } catch (error) { console.error(error); } // what cannot be drawn keeps nothing else from it
    }
  };
  const chooser = (element, of, source, watch) => {
    const host = element.querySelector(".lab-chooser");
    const choose = (id) => {
      chosen[of] = id;
      draw();
      for (const [name, value] of values) if (value?.by && value.of === of) redraw(name);
    };
    const draw = () => {
      const { label, options } = source.value ?? { options: [] };
      host.hidden = options.length < 2;
      if (host.hidden) { host.replaceChildren(); return; }
      host.setAttribute("aria-label", label);
      const shown = options.some(({ id }) => id === chosen[of]) ? chosen[of] : options[0].id;
      if (options.length > MANY_OPTIONS) {
        const menu = host.querySelector("select") ?? el("select", { "aria-label": label, onchange: () => choose(menu.value) });
        menu.replaceChildren(...options.map(({ id, title }) => el("option", { value: id, selected: id === shown }, title)));
        menu.value = shown;
        if (!menu.isConnected) host.replaceChildren(el("span", { class: "lab-dim" }, label), menu);
        return;
      }
      const focused = host.contains(document.activeElement) ? document.activeElement.dataset.option : null;
      host.replaceChildren(el("span", { class: "lab-dim" }, label), ...options.map(({ id, title, colour }) =>
        el("button", { class: "lab-chip", type: "button", "data-option": id, "aria-pressed": String(id === shown),
          style: `--method:${colour}`, onclick: () => choose(id) }, title)));
      if (focused) [...host.children].find((child) => child.dataset.option === focused)?.focus();
    };
    watch("value", draw);
    draw();
  };

  // Theme

  const applyTheme = () => {
    const wanted = recall("theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    document.body.classList.toggle("dark", wanted === "dark");
    document.dispatchEvent(new Event("lab-theme"));
  };
  const switchTheme = () => {
    remember("theme", document.body.classList.contains("dark") ? "light" : "dark");
    applyTheme();
  };

  // Veils: harmful text stays blurred until its reader asks for it.

  const revealAll = () => recall("reveal") === "yes";
  const applyReveal = () => document.documentElement.classList.toggle("lab-reveal", revealAll());
  document.addEventListener("click", (event) => {
    const veil = event.target.closest?.("[data-veil]");
    if (veil) veil.classList.toggle("lab-shown");
  });
  document.addEventListener("keydown", (event) => {
    if ((event.key === "Enter" || event.key === " ") && event.target.matches?.("[data-veil]")) {
      event.preventDefault();
      event.target.click();
    }
  });

  // Figures

  let plotlyPromise = null;
  const plotly = () => {
    plotlyPromise ??= new Promise((resolve, reject) => {
      const script = el("script", { src: "lab/plotly.min.js" });
      script.onload = () => resolve(window.Plotly);
      script.onerror = () => { plotlyPromise = null; reject(new Error("plotly.min.js did not load")); };
      document.head.append(script);
    });
    return plotlyPromise;
  };

  // Strings that begin with "--" are CSS variables; plotly needs their values.
  const themed = (value, style) => {
    if (typeof value === "string") return value.startsWith("--") ? style.getPropertyValue(value).trim() : value;
    if (Array.isArray(value)) return value.map((item) => themed(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, themed(item, style)]));
    }
    return value;
  };

  const SVG = "http://www.w3.org/2000/svg";
  const svg = (tag, attributes) => {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const DASHES = { dash: "6 4", dot: "1.5 3.5", dashdot: "6 3 1.5 3", longdash: "10 4", longdashdot: "10 3 1.5 3" };
  const SHAPES = {
    circle: "M14 2.5a4 4 0 1 0 .01 0z",
    square: "M10.5 3h7v7h-7z",
    diamond: "M14 1.5l5 5-5 5-5-5z",
    "triangle-up": "M14 2l5 9h-10z",
    cross: "M12.5 2h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
    x: "M10 4.5l2-2 2 2 2-2 2 2-2 2 2 2-2 2-2-2-2 2-2-2 2-2z",
    pentagon: "M14 1.5l5 3.7-1.9 5.8h-6.2L9 5.2z",
    hexagon: "M11.3 2h5.4l2.7 4.5-2.7 4.5h-5.4L8.6 6.5z",
    "triangle-down": "M14 11l5-9H9z",
    star: "M14 1l1.7 3.6 4 .5-3 2.7.8 3.9-3.5-2-3.5 2 .8-3.9-3-2.7 4-.5z",
  };
  const swatch = (entry) => {
    const colour = entry.colour.startsWith("--") ? `var(${entry.colour})` : entry.colour;
    const box = svg("svg", { width: 28, height: 13, viewBox: "0 0 28 13", "aria-hidden": "true" });
    if (entry.fill) {
      box.append(svg("rect", { x: 8, y: 1, width: 12, height: 11, stroke: colour,
        fill: entry.pattern || entry.hollow ? "none" : colour, "stroke-width": 1.4 }));
      if (entry.pattern === "/") box.append(svg("path", { d: "M8 9l8-8M10 12l10-10M16 12l4-4", stroke: colour, "stroke-width": 1.2 }));
      if (entry.pattern === ".") box.append(svg("path", { d: "M11 4h0M14 4h0M17 4h0M11 6.5h0M14 6.5h0M17 6.5h0M11 9h0M14 9h0M17 9h0", stroke: colour,
        "stroke-width": 1.5, "stroke-linecap": "round" }));
      return box;
    }
    if (entry.dash || !entry.symbol) {
      box.append(svg("line", { x1: 0, x2: 28, y1: 6.5, y2: 6.5, stroke: colour, "stroke-width": 2.2,
        "stroke-dasharray": DASHES[entry.dash] ?? "none" }));
    }
    if (entry.symbol) box.append(svg("path", { d: SHAPES[entry.symbol] ?? SHAPES.circle, stroke: colour,
      fill: entry.hollow ? "none" : colour, "stroke-width": entry.hollow ? 1.6 : 0 }));
    return box;
  };

  // One figure for life: the plot's node is made once and handed to Plotly.react, so zoom and hover survive new data.
  const figure = (element, props, watch) => {
    const host = element.querySelector(".lab-figure");
    const key = el("div", { class: "lab-key" });
    const plot = el("div", { class: "lab-plot", role: "img" });
    const note = el("p", { class: "lab-empty" });
    host.append(key, plot, note);
    let logarithmic = null;
    let drawing = false;
    let stale = false;

    const drawKey = (meta, spec) => {
      key.replaceChildren(...(meta.key ?? []).map((entry) => el("span", { class: "lab-key-entry" }, swatch(entry), entry.text)));
      if (meta.log) {
        logarithmic ??= spec.layout[meta.log].type === "log";
        key.append(el("button", { class: "lab-chip", type: "button", "aria-pressed": String(logarithmic),
          onclick: () => { logarithmic = !logarithmic; draw(); } }, "log scale"));
      }
    };
    const paint = async () => {
      const spec = props.value;
      if (!spec || !spec.meta) return;
      const { meta } = spec;
      plot.setAttribute("aria-label", meta.label);
      host.style.minHeight = `${meta.height}px`;
      note.hidden = !meta.empty;
      plot.hidden = key.hidden = Boolean(meta.empty);
      if (meta.empty) { note.textContent = meta.empty; return; }
      if (!host.clientWidth) return; // on a hidden step; the observer draws it when it appears
      drawKey(meta, spec);
      const style = getComputedStyle(document.body);
      const layout = themed(spec.layout, style);
      layout.font.family = getComputedStyle(host).fontFamily;
      if (host.clientWidth < 480) layout.margin = { ...layout.margin, l: 46, r: 8 };
      if (meta.log) {
        layout[meta.log] = { ...layout[meta.log], type: logarithmic ? "log" : "linear" };
        if (!logarithmic) delete layout[meta.log].dtick;
      }
      const library = await plotly();
      await library.react(plot, themed(spec.data, style), layout, {
        responsive: false, displaylogo: false, displayModeBar: "hover",
        modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
      });
      drawnWidth = host.clientWidth;
    };
    let drawnWidth = 0;
    const draw = async () => { // never two reacts at once: the last value wins
      if (drawing) { stale = true; return; }
      drawing = true;
      try {
        do { stale = false; await paint(); } while (stale);
      } catch (error) {
        note.hidden = false;
        note.textContent = "The figure cannot be drawn. Reload the page.";
        console.warn(error);
      } finally { drawing = false; }
    };
    new ResizeObserver(() => {
      if (!host.clientWidth || host.clientWidth === drawnWidth) return;
      if (drawnWidth && plot.data) { drawnWidth = host.clientWidth; window.Plotly.Plots.resize(plot); } else draw();
    }).observe(host);
    document.addEventListener("lab-theme", draw);
    watch("value", draw);
    draw();
  };

  // Markup made and escaped in Python.
  const markup = (element, source, watch) => {
    const host = element.querySelector(".lab-news");
    const draw = () => { if (source.value !== undefined) host.innerHTML = source.value; };
    watch("value", draw);
    draw();
  };

  // Answer panes: one prompt, several model states. Nodes stay, text is set, so a reader's reveal survives streaming.
  const panes = (element, props, watch, raise) => {
    const host = element.querySelector(".lab-panes");
    const made = new Map();
    let shape = "";
    let followed = "";

    const make = (pane) => {
      const parts = {
        name: el("span", { class: "lab-pane-name" }),
        hash: el("code", { class: "lab-hash" }),
        verdict: el("span", { class: "lab-verdict" }),
        text: el("p", { class: "lab-pane-text", dir: "auto" }),
        note: el("button", { class: "lab-veil-button", type: "button",
          onclick: () => parts.root.classList.toggle("lab-shown") }),
      };
      parts.root = el("article", { class: pane.wide ? "lab-pane lab-pane-wide" : "lab-pane", style: `--method:${pane.colour}`, "data-state": pane.state },
        el("header", {}, parts.name, parts.hash), parts.text, el("footer", {}, parts.verdict, parts.note));
      return parts;
    };
    const draw = () => {
      const value = props.value;
      if (!value || !value.panes) return;
      const wanted = JSON.stringify(value.panes.map((pane) => pane.id));
      if (wanted !== shape) {
        shape = wanted;
        made.clear();
        host.replaceChildren();
        host.style.setProperty("--columns", value.columns);
        host.toggleAttribute("data-many", value.columns > 2);
        for (const pane of value.panes) {
          const parts = make(pane);
          made.set(pane.id, parts);
          host.append(parts.root);
        }
      }
      host.dataset.question = value.question ?? "";
      host.dataset.prompt = value.prompt ?? "";
      if (value.follow && value.question !== followed) { followed = value.question; raise.follow(); }
      for (const pane of value.panes) {
        const parts = made.get(pane.id);
        const fresh = parts.root.dataset.question !== (value.question ?? "");
        if (fresh) { parts.root.dataset.question = value.question ?? ""; parts.root.classList.remove("lab-shown"); }
        parts.name.textContent = pane.title;
        parts.hash.textContent = pane.hash ?? "";
        parts.hash.title = pane.hash_title ?? "";
        parts.text.textContent = pane.text ?? "";
        parts.text.classList.toggle("lab-hint", Boolean(pane.hint));
        parts.root.classList.toggle("lab-veiled", Boolean(pane.veil));
        parts.root.classList.toggle("lab-streaming", Boolean(pane.streaming));
        parts.root.dataset.done = String(Boolean(pane.done));
        parts.root.dataset.verdict = pane.verdict ?? "";
        parts.verdict.textContent = pane.verdict_text ?? "";
        parts.verdict.hidden = !pane.verdict_text;
        parts.note.textContent = pane.veil ? pane.veil : "";
        parts.note.hidden = !pane.veil;
        parts.root.style.setProperty("--method", pane.colour);
        parts.root.setAttribute("aria-busy", String(Boolean(pane.streaming)));
      }
    };
    watch("value", draw);
    draw();
  };

  // Rail: brand, steps with their state, the run, and the page's three switches.
  const rail = (element, props, watch, drawn, onDrawn, raise) => {
    const shown = () => drawn.value ?? props.value.nobody; // no run, until the page knows which
    const host = element.querySelector(".lab-rail");
    const brand = el("div", { class: "lab-brand" });
    const steps = el("nav", { class: "lab-steps", "aria-label": "Steps" });
    const run = el("div", { class: "lab-run" });
    const link = el("button", { class: "lab-chip", type: "button" });
    const theme = el("button", { class: "lab-chip", type: "button", onclick: switchTheme });
    const reveal = el("button", { class: "lab-chip", type: "button", onclick: () => {
      remember("reveal", revealAll() ? "no" : "yes");
      applyReveal();
      reveal.setAttribute("aria-pressed", String(revealAll()));
    } });
    const tools = el("div", { class: "lab-tools" }, theme, reveal, link);
    host.append(brand, steps, run, tools);
    const buttons = new Map();
    let selected = 0;
    let missed = null;

    const go = (id) => {
      selected = id;
      window.labStep = id;
      mark();
      raise.go();
      look();
      scrollTo({ top: 0 });
    };
    const mark = () => {
      for (const [id, parts] of buttons) parts.root.setAttribute("aria-current", id === selected ? "step" : "false");
      if (!drawn.value) return; // the address still says which run to open
      const { run } = drawn.value;
      const address = new URL(location.href);
      address.searchParams.set("step", selected);
      if (run) address.searchParams.set("run", run.id);
      else address.searchParams.delete("run");
      if (address.href !== location.href) history.replaceState(null, "", address);
    };
    const draw = () => {
      const value = shown();
      if (!value) return;
      document.getElementById("stage").inert = !drawn.value; // nothing may be asked of a run not known yet
      brand.textContent = value.title;
      theme.textContent = value.words.theme;
      theme.title = value.words.theme_hint;
      reveal.textContent = value.words.reveal;
      reveal.title = value.words.reveal_hint;
      reveal.setAttribute("aria-pressed", String(revealAll()));
      if (!link.dataset.copied) link.textContent = value.words.link;
      for (const step of value.steps) {
        if (!buttons.has(step.id)) {
          const parts = { disc: el("span", { class: "lab-disc", "aria-hidden": "true" }), name: el("span", { class: "lab-step-name" }),
            note: el("span", { class: "lab-step-note" }) };
          parts.root = el("button", { class: "lab-step", type: "button", "data-step": step.id, onclick: () => go(step.id) },
            parts.disc, el("span", { class: "lab-step-words" }, parts.name, parts.note));
          buttons.set(step.id, parts);
          steps.append(parts.root);
        }
        const parts = buttons.get(step.id);
        parts.root.dataset.state = step.state;
        parts.disc.style.setProperty("--share", `${Math.round(100 * step.share)}%`);
        parts.disc.textContent = step.state === "done" ? "✓" : step.state === "failed" ? "!" : step.id;
        parts.name.textContent = step.name;
        parts.note.textContent = step.note;
      }
      run.textContent = value.run ? value.run.name : drawn.value ? value.words.no_run : "";
      run.title = value.run ? value.run.id : "";
      link.hidden = !value.run;
      if (!selected) { // first drawing: the address says where to begin
        const wanted = Number(new URL(location.href).searchParams.get("step"));
        selected = buttons.has(wanted) ? wanted : 1;
        if (selected !== 1) queueMicrotask(() => go(selected));
      }
      mark();
    };
    link.addEventListener("click", async () => {
      try { await navigator.clipboard.writeText(location.href); } catch { prompt(shown().words.link, location.href); return; }
      link.dataset.copied = "yes";
      link.textContent = shown().words.copied;
      setTimeout(() => { delete link.dataset.copied; link.textContent = shown().words.link; }, 1500);
    });
    document.addEventListener("lab-go", (event) => go(event.detail));
    // An idle page does not poll. It looks again when its reader comes back to it.
    let lookedAt = Date.now();
    const look = () => {
      if (!props.value.watched) return; // what it remembers may not be the run its address names
      lookedAt = Date.now();
      raise.look();
    };
    const lookBack = () => { if (!document.hidden && Date.now() - lookedAt > 3000) look(); };
    document.addEventListener("visibilitychange", lookBack);
    window.addEventListener("focus", lookBack);
    document.addEventListener("pointerdown", lookBack);
    document.addEventListener("keydown", lookBack);
    applyTheme();
    applyReveal();
    refresh = look;
    const learn = () => {
      if (props.value.missed && props.value.missed !== missed) { missed = props.value.missed; raise.gone(); }
      if (props.value.watched) watchRun(props.value.watched);
    };
    watch("value", learn);
    learn();
    onDrawn("value", draw);
    draw();
  };

  // Rows and chips that name what they stand for: a click tells Python.
  const choices = (element, choose) => {
    element.addEventListener("click", (event) => {
      const choice = event.target.closest("[data-choice]");
      if (choice) choose(choice.dataset.choice);
    });
  };

  return { ask, live, chooser, figure, markup, panes, rail, choices };
})();
document.dispatchEvent(new Event("lab-ready")); // components that were there before this script wait for it
