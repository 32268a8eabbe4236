// Where the user writes: text, images by drop, paste and camera, files of text.
import { html, useState, useEffect, useLayoutEffect, useRef, useStore, Dialog, Icon, IconButton, KeptStore, Store, inTab } from "../lib.js";
import { server } from "../api.js";
import { add, current } from "./conversations.js";
import { answer } from "./generate.js";
import { tokenView } from "./options.js";

const VIEWS = [
  ["text", "Text", "answers as text"],
  ["tokens", "Tokens", "how likely each token was, and what else it could have been"],
  ["origins", "Origins", "which tokens were sampled, accepted from a draft, or forced by a grammar"],
];
/** What is being written stays while other views are looked at; the words over a reload, too. */
const draft = new KeptStore("sglang.draft", (kept) => (typeof kept === "string" ? kept : ""), inTab);
const attached = new Store({ images: [], files: [] });
const attach = (kind, one) => attached.put({ [kind]: [...attached.value[kind], one] });

const LARGEST_TEXT = 1 << 20;
const LARGEST_SIDE = 2048;

/** A file of the user as a data URL, made smaller if it is larger than any model looks at. */
async function readImage(file) {
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Error(`${file.name} is no image that this browser can read`);
  });
  const scale = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const plain = ["image/png", "image/jpeg", "image/webp", "image/gif"].includes(file.type);
  if (scale === 1 && plain) {
    return new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => reject(reader.error);
      reader.readAsDataURL(file);
    });
  }
  return drawn(bitmap, Math.max(Math.round(bitmap.width * scale), 1), Math.max(Math.round(bitmap.height * scale), 1));
}

function drawn(source, width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white"; // a JPEG has no transparency
  pen.fillRect(0, 0, width, height);
  pen.drawImage(source, 0, 0, width, height);
  return canvas.toDataURL("image/jpeg", 0.92);
}

function isUtf8(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes) !== null;
  } catch {
    return false;
  }
}

async function readText(file) {
  if (file.size > LARGEST_TEXT) throw new Error(`${file.name} has more than 1 MiB`);
  const text = await file.text();
  if (text.includes("\u0000")) throw new Error(`${file.name} is not text`);
  if (text.includes("\ufffd") && !isUtf8(await file.arrayBuffer())) throw new Error(`${file.name} is not text in UTF-8`);
  return { name: file.name, text };
}

function Camera({ onShot, onClose }) {
  const video = useRef(null);
  const [problem, setProblem] = useState(null);
  const [seen, setSeen] = useState(false);
  useEffect(() => {
    let stream = null;
    let left = false;
    if (!navigator.mediaDevices) {
      setProblem("The browser gives its camera to pages from localhost or by https only.");
      return undefined;
    }
    navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } }).then(
      (found) => {
        stream = found;
        if (left) stop();
        else video.current.srcObject = found;
      },
      (error) => setProblem(`There is no camera to use: ${error.message}`),
    );
    const stop = () => stream?.getTracks().forEach((track) => track.stop());
    return () => {
      left = true;
      stop();
    };
  }, []);
  const shoot = () => {
    onShot(drawn(video.current, video.current.videoWidth, video.current.videoHeight));
    onClose();
  };
  return html`<${Dialog} title="Camera" onClose=${onClose}>
    ${problem ? html`<p class="error" role="alert">${problem}</p>` : html`<video ref=${video} autoplay playsinline muted onLoadedData=${() => setSeen(true)}></video>`}
    <footer><button type="button" class="primary" disabled=${!seen} onClick=${shoot}>Take the picture</button></footer>
  <//>`;
}

export function Composer({ running, onOptions }) {
  const text = useStore(draft);
  const { images, files } = useStore(attached);
  const [problem, setProblem] = useState(null);
  const [camera, setCamera] = useState(false);
  const [over, setOver] = useState(false);
  const area = useRef(null);
  const picker = useRef(null);
  const view = useStore(tokenView);
  const known = useStore(server);
  const takesImages = known?.info?.has_image_understanding === true;

  useLayoutEffect(() => {
    const box = area.current;
    box.style.height = "auto";
    box.style.height = `${Math.min(box.scrollHeight, innerHeight * 0.4)}px`;
  }, [text]);

  useLayoutEffect(() => {
    // a field takes text by itself; elsewhere browsers would leave the page for a link
    const isForField = (event) => !event.dataTransfer?.types.includes("Files") && event.target.closest?.("textarea, input");
    const block = (event) => isForField(event) || event.preventDefault();
    const drop = (event) => {
      block(event);
      setOver(false);
      takeFiles(event.dataTransfer.files);
    };
    const dragOver = (event) => {
      block(event);
      setOver(event.dataTransfer?.types.includes("Files"));
    };
    const leave = (event) => event.relatedTarget === null && setOver(false);
    const all = { dragenter: block, dragover: dragOver, dragleave: leave, drop };
    for (const [name, handler] of Object.entries(all)) addEventListener(name, handler);
    return () => {
      for (const [name, handler] of Object.entries(all)) removeEventListener(name, handler);
    };
  }, [takesImages, known?.info]);

  const takeFiles = async (given) => {
    setProblem(null);
    for (const file of given) {
      try {
        if (!file.type.startsWith("image/")) {
          attach("files", await readText(file));
        } else if (!takesImages) {
          setProblem(known?.info ? "This model reads text only: it cannot see images." : "Whether this model sees images is known once it is in memory: send it a message first.");
        } else {
          attach("images", await readImage(file));
        }
      } catch (error) {
        setProblem(error.message || `${file.name} cannot be read`);
      }
    }
  };
  const paste = (event) => {
    // office programs put a picture of a text beside it
    if (!event.clipboardData.files.length || event.clipboardData.types.includes("text/plain")) return;
    event.preventDefault();
    takeFiles(event.clipboardData.files);
  };
  const send = () => {
    const content = draft.value;
    const given = attached.value;
    if (running || !(content.trim() || given.images.length || given.files.length)) return;
    const conversation = current.value;
    const node = add(conversation, conversation.leaf, "user", { content, ...given });
    draft.set("");
    area.current.value = ""; // before it is drawn: what is typed meanwhile comes after it
    attached.set({ images: [], files: [] });
    answer(conversation, node.id);
  };
  const key = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  };
  const drop = (kind, i) => attached.put({ [kind]: attached.value[kind].filter((_, at) => at !== i) });
  return html`<form class=${over ? "composer over" : "composer"} onSubmit=${(event) => {
    event.preventDefault();
    send();
  }}>
    ${problem && html`<p class="error" role="alert">${problem}</p>`}
    ${(images.length > 0 || files.length > 0) && html`<ul class="attached">
      ${images.map((url, i) => html`<li><img src=${url} alt=${`attached image ${i + 1}`} /><${IconButton} icon="close" label=${`Take away image ${i + 1}`} onClick=${() => drop("images", i)} /></li>`)}
      ${files.map((file, i) => html`<li><span><${Icon} name="file" /> ${file.name}</span><${IconButton} icon="close" label=${`Take away ${file.name}`} onClick=${() => drop("files", i)} /></li>`)}
    </ul>`}
    <textarea ref=${area} rows="1" aria-label="Message" placeholder=${over ? "Drop files here" : "Write a message"} value=${text} dir="auto" onInput=${(event) => draft.set(event.target.value)} onKeyDown=${key} onPaste=${paste} />
    <div class="row">
      <input ref=${picker} type="file" class="hidden" multiple tabindex="-1" aria-label="Files" onChange=${(event) => {
        takeFiles([...event.target.files]);
        event.target.value = "";
      }} />
      <${IconButton} icon="file" label="Attach images or files of text" onClick=${() => picker.current.click()} />
      ${takesImages && html`<${IconButton} icon="camera" label="Camera" onClick=${() => setCamera(true)} />`}
      <${IconButton} icon="sliders" label="Options" onClick=${onOptions} />
      <div class="segments small" role="group" aria-label="Answers as">${VIEWS.map(([name, label, title]) => html`<button type="button" aria-pressed=${String(view === name)} title=${title} onClick=${() => tokenView.set(name)}>${label}</button>`)}</div>
      <span class="space"></span>
      <button class="send" aria-label="Send" disabled=${running || !(text.trim() || images.length || files.length)}><${Icon} name="send" /></button>
    </div>
    ${camera && html`<${Camera} onClose=${() => setCamera(false)} onShot=${(url) => attach("images", url)} />`}
  </form>`;
}
