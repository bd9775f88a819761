// Cross-entropy over HTTP: `node cross_entropy.mjs` (Node 18 or later, no packages).
import { fileURLToPath } from "node:url";

const BASE_URL = process.env.LOSSEVAL_URL ?? "http://127.0.0.1:8000";
const TIMEOUT_S = 10;

/** What the service refused (RFC 9457): `code` is for programs, title and detail are for people. */
export class Problem extends Error {
  constructor(document) {
    super(`${document.title}: ${document.detail}`);
    this.name = "Problem";
    this.document = document;
  }
}

/** Posts a body and resolves to a successful response. */
export async function post(body, headers, query = "") {
  const response = await fetch(`${BASE_URL}/v1/cross-entropy${query}`, {
    method: "POST",
    headers: { "X-Request-Timeout": `${TIMEOUT_S}`, ...headers },
    body,
    signal: AbortSignal.timeout(TIMEOUT_S * 1000),
  });
  if (response.ok) return response;
  const isProblem = response.headers.get("content-type")?.startsWith("application/problem+json");
  throw isProblem ? new Problem(await response.json()) : new Error(`HTTP ${response.status} from ${BASE_URL}`);
}

/** Evaluates logits and labels, with any of the API's options beside them. */
export async function crossEntropy(request) {
  const response = await post(JSON.stringify(request), { "Content-Type": "application/json" });
  return response.json();
}

async function main() {
  const logits = [
    [0.3703, -0.1607, -0.7473, -2.2135],
    [0.6929, -0.2042, -0.766, -0.3613],
    [-0.3363, 0.6417, 0.3103, 0.3132],
  ];
  const { loss } = await crossEntropy({ logits, labels: [0, 1, 2] });
  console.log(Number(loss)); // a loss of NaN or Infinity comes as a string, which Number reads
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  main().catch((error) => {
    console.error(error.cause ? `${error.message}: ${error.cause}` : error.message);
    process.exitCode = 1;
  });
}
