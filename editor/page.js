// The page's pictures and tiles. Each function is attached to a component of the page, and gets its
// element, trigger (to send an event) and watch (to be notified of new content).

// A pointer's position in a picture as [y, x] in pixels; the first pixel's centre is [0, 0]. From a
// pointer outside, the nearest position that is at most `margin` pixels outside.
function position(event, image, width, height, margin = 0) {
  const box = image.getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * width - 0.5;
  const y = ((event.clientY - box.top) / box.height) * height - 0.5;
  const near = (value, limit) => Math.min(Math.max(value, -0.49 - margin), limit - 0.51 + margin);
  return [near(y, height), near(x, width)].map((value) => Math.round(value * 100) / 100);
}

// Both pictures: clicks, brush strokes, and dragging.
function stage(element, trigger, watch) {
  let points = null; // of the stroke that is being drawn
  let pointer = null; // that draws it, and not a second finger
  let target = null;
  let deleted = null; // the last click of Delete
  const pictures = () => element.querySelector(".pictures");
  // as chosen here: the server's response to the choice may come after the stroke
  const tool = () => document.querySelector("#tools input:checked").value;
  const radius = () => document.querySelector("#radius input[type=range]").value;
  const size = () => [Number(pictures().dataset.width), Number(pictures().dataset.height)];
  let silent = false; // no response since the user stayed
  let reloading = false;

  function show() {
    if (tool() !== pictures().dataset.tool) return; // colour and radius come with the response
    const drawn = tool() === "Move" ? [points[0], points[points.length - 1]] : points;
    const path = drawn.map(([y, x]) => `${x + 0.5} ${y + 0.5}`).join("L");
    element.querySelectorAll(".live").forEach((live) => {
      live.setAttribute("d", `M${path}L${path.split("L").pop()}`);
      live.setAttribute("stroke-width", tool() === "Paint" ? 2 * radius() + 1 : 1);
    });
    if (tool() !== "Move") return;
    const [from, to] = drawn;
    element.querySelectorAll(".under, .over").forEach((shape) => {
      const box = shape.getBBox();
      const within = box.x <= from[1] && from[1] <= box.x + box.width &&
        box.y <= from[0] && from[0] <= box.y + box.height;
      const shift = within ? `translate(${to[1] - from[1]} ${to[0] - from[0]})` : "";
      shape.setAttribute("transform", shift);
    });
  }

  element.addEventListener("pointerdown", (event) => {
    if (!event.isPrimary) return;
    target = event.target.closest(".canvas");
    if (!target || event.button !== 0) return;
    pointer = event.pointerId;
    event.preventDefault();
    // the second click of a double click would delete what was behind the object
    if (tool() === "Delete" && deleted && event.timeStamp - deleted.timeStamp < 500 &&
      Math.hypot(event.pageX - deleted.pageX, event.pageY - deleted.pageY) < 10) return;
    document.activeElement.blur(); // a number field commits its value, within its range, on blur
    target.setPointerCapture(event.pointerId);
    points = [position(event, target.querySelector("img"), ...size())];
    if (["Paint", "Move"].includes(tool())) show();
  });
  element.addEventListener("pointermove", (event) => {
    if (!points || event.pointerId !== pointer) return;
    if (!["Paint", "Move"].includes(tool())) return;
    const margin = tool() === "Paint" ? Math.max(...size()) : 0; // a stroke goes on outside
    points.push(position(event, target.querySelector("img"), ...size(), margin));
    show();
  });
  element.addEventListener("pointerup", (event) => {
    if (!points || event.pointerId !== pointer) return;
    if (tool() === "Delete") deleted = event;
    element.dataset.busy = "yes";
    trigger("draw", { points: points.slice(0, 10000), scene: pictures().dataset.scene });
    points = null;
  });
  element.addEventListener("pointercancel", (event) => {
    if (event.pointerId === pointer) points = null;
  });
  // before edits are lost: a closed tab forgets its session
  addEventListener("beforeunload", (event) => {
    if (reloading || pictures()?.dataset.edited !== "yes") return;
    event.preventDefault();
    // Gradio closes the connection, although the user may stay; in some versions before this
    event.stopImmediatePropagation();
    // If it was waiting for a response, it then receives no other: the next action reloads the page,
    // which keeps its edits.
    setTimeout(() => {
      silent = true;
      trigger("stale");
    });
  }, { capture: true });
  ["pointerdown", "keydown"].forEach((action) => document.addEventListener(action, () => {
    if (!silent) return;
    reloading = true;
    location.reload();
  }, { capture: true }));
  watch("value", () => {
    silent = false;
    delete element.dataset.busy;
    element.querySelectorAll(".live").forEach((live) => live.setAttribute("d", ""));
    element.querySelectorAll(".under, .over").forEach((one) => one.removeAttribute("transform"));
  });
}

// Gradio sends every event as a request, which is answered with a number; the response follows in a
// stream, which the server closes when no event is left. As these are separate connections, their
// order is not certain. So a request waits for the number of the one before it, which it could
// overtake, and a number waits (100 ms at most) for a stream that may be closing, in which Gradio
// would expect the response.
function keepOrder() {
  const send = window.fetch;
  const pause = (milliseconds) => new Promise((over) => setTimeout(over, milliseconds));
  let numbered = Promise.resolve();
  let closed = Promise.resolve();
  window.fetch = async (address, ...rest) => {
    const url = address.url ?? String(address);
    if (url.includes("/queue/data")) {
      const stream = send(address, ...rest);
      closed = stream.then((one) => one.clone().body.pipeTo(new WritableStream()))
        .catch(() => {}).then(() => pause(20));
      return stream;
    }
    if (!url.includes("/queue/join")) return send(address, ...rest);
    const number = numbered.then(() => send(address, ...rest));
    numbered = number.then((one) => one.clone().text()).catch(() => {});
    await number;
    await Promise.race([closed, pause(100)]);
    return number;
  };
}

// Ctrl+Z undoes; Ctrl+Shift+Z and Ctrl+Y redo, also while an image is being generated, when the
// buttons may be disabled. In text fields the browser handles them.
function shortcuts(trigger) {
  document.addEventListener("keydown", (event) => {
    const typing = "textarea, input:not([type=radio], [type=checkbox], [type=range])";
    const key = event.key.toLowerCase();
    if (!["z", "y"].includes(key) || !(event.ctrlKey || event.metaKey) || event.altKey) return;
    if (event.target.matches(typing)) return;
    event.preventDefault();
    if (event.repeat) return; // a key held down would ask faster than images can be generated
    trigger(key === "y" || event.shiftKey ? "redo" : "undo");
  });
}

// Tiles to choose from: styles, classes, objects.
function tiles(element, trigger) {
  element.addEventListener("click", (event) => {
    const tile = event.target.closest("button[data-number]");
    if (tile) trigger("choose", { number: Number(tile.dataset.number) });
  });
}

// A photograph to click in.
function photograph(element, trigger) {
  element.addEventListener("click", (event) => {
    const canvas = event.target.closest(".canvas");
    if (!canvas) return;
    const size = [Number(canvas.dataset.width), Number(canvas.dataset.height)];
    trigger("draw", { points: [position(event, canvas.querySelector("img"), ...size)] });
  });
}

// Saves each file that arrives: its name, type and content in base64.
function download(props, watch) {
  watch("value", () => {
    const file = props.value;
    if (!file) return;
    const bytes = Uint8Array.from(atob(file.content), (char) => char.charCodeAt(0));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([bytes], { type: file.type }));
    link.download = file.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  });
}
