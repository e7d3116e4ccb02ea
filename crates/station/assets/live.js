// Refreshes what changes on a page: asks for it every few seconds and swaps it in. Keeps focus, scrolling and selection.
"use strict";

(() => {
  const ANSWER_MAX_MS = 8000;
  const live = document.getElementById("live");
  const lost = document.getElementById("lost");
  if (!live || !live.dataset.every) return;
  const every = Number(live.dataset.every) * 1000;
  let confirmed = new Date();
  let timer = 0;

  const age = () => {
    const seconds = Math.round((Date.now() - confirmed.getTime()) / 1000);
    return seconds < 120 ? `${seconds} s` : `${Math.floor(seconds / 60)} min`;
  };

  const selecting = () => {
    const selection = document.getSelection();
    return selection && !selection.isCollapsed && live.contains(selection.anchorNode);
  };

  // What has the focus is found again by its id, or by where it leads.
  const mark = (element) => (element.id ? `#${CSS.escape(element.id)}` : element.tagName === "A" ? `a[href="${CSS.escape(element.getAttribute("href"))}"]` : "");

  const swap = (text) => {
    const parsed = new DOMParser().parseFromString(text, "text/html");
    const scrolled = [...live.querySelectorAll(".scroll, .output")].map((box) => [box.id, box.scrollLeft, box.scrollTop]);
    const focused = live !== document.activeElement && live.contains(document.activeElement) ? mark(document.activeElement) : "";
    live.replaceChildren(...parsed.body.childNodes);
    for (const [id, left, top] of scrolled) {
      const box = id && document.getElementById(id);
      if (box) box.scrollTo(left, top);
    }
    if (focused) live.querySelector(focused)?.focus({ preventScroll: true });
  };

  const refresh = async () => {
    try {
      const answer = await fetch(window.location.href, {
        cache: "no-store",
        headers: { "Steward-Part": "live" },
        signal: AbortSignal.timeout(ANSWER_MAX_MS),
      });
      if (answer.status === 401) {
        window.location.assign("/login");
        return;
      }
      if (answer.status >= 500) throw new Error(`status ${answer.status}`);
      const text = await answer.text();
      confirmed = new Date();
      lost.hidden = true;
      live.classList.remove("old");
      if (!selecting()) swap(text);
    } catch {
      lost.textContent = `Connection lost: data as of ${confirmed.toISOString().slice(11, 19)} UTC, ${age()} ago. Trying again.`;
      lost.hidden = false;
      live.classList.add("old");
    }
  };

  const turn = async () => {
    window.clearTimeout(timer);
    if (!document.hidden) await refresh();
    window.clearTimeout(timer);
    timer = window.setTimeout(turn, every);
  };

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) turn();
  });
  timer = window.setTimeout(turn, every);
})();
