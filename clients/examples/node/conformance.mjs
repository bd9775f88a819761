// Runs the conformance vectors and writes TAP: `node conformance.mjs ../conformance.json`.
import { readFile } from "node:fs/promises";
import { crossEntropy, post, Problem } from "./cross_entropy.mjs";

/** The first difference, by the rules of ../README.md, or undefined. */
function difference(expected, found, tolerance, place) {
  if (expected === null) return found === undefined ? undefined : `${place} is there`;
  if (typeof expected === "number" && typeof found === "number") {
    const allowed = tolerance.absolute + tolerance.relative * Math.abs(expected);
    return Math.abs(found - expected) <= allowed ? undefined : `${place} is ${found}, not ${expected}`;
  }
  if (typeof expected !== "object") return found === expected ? undefined : `${place} is ${found}, not ${expected}`;
  if (typeof found !== "object" || Array.isArray(found) !== Array.isArray(expected)) return `${place} has another type`;
  if (Array.isArray(expected) && expected.length !== found.length) return `${place} has length ${found.length}`;
  for (const key of Object.keys(expected)) {
    const inside = difference(expected[key], found[key], tolerance, `${place}/${key}`);
    if (inside !== undefined) return inside;
  }
  return undefined;
}

/** The status and the document of an answer, or of a problem. */
async function answer(evaluation) {
  try {
    return [200, await evaluation];
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    return [error.document.status, error.document];
  }
}

async function postBinary({ query, body }) {
  const headers = { "Content-Type": "application/x-safetensors", Accept: "application/json" };
  return (await post(Buffer.from(body, "base64"), headers, `?${query}`)).json();
}

const { vectors } = JSON.parse(await readFile(process.argv[2], "utf8"));
let count = 0;

async function check(name, vector, evaluation) {
  const [status, document] = await answer(evaluation);
  const tolerance = vector.tolerance ?? { relative: 0, absolute: 0 };
  const why =
    status === vector.status
      ? difference(vector.response, document, tolerance, "#")
      : `status ${status}, not ${vector.status}`;
  console.log(why === undefined ? `ok ${++count} - ${name}` : `not ok ${++count} - ${name} # ${why}`);
  if (why !== undefined) process.exitCode = 1;
}

for (const vector of vectors) {
  await check(vector.name, vector, crossEntropy(vector.request));
  if (vector.safetensors) await check(`${vector.name} in binary`, vector, postBinary(vector.safetensors));
}
console.log(`1..${count}`);
