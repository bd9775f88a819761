// Cross-entropy over HTTP in binary, for arrays of any size: `node binary.mjs`.
//
// A safetensors file is the length of its header (8 bytes, little-endian), the header as JSON, and the elements.
import { post } from "./cross_entropy.mjs";

const ARRAYS = { F64: Float64Array, F32: Float32Array, I64: BigInt64Array };

/** Builds a file of `{name: [array, shape]}`; arrays of float64, float32 and int64. */
function encode(tensors) {
  const header = {};
  let length = 0;
  for (const [name, [array, shape]] of Object.entries(tensors)) {
    const dtype = Object.keys(ARRAYS).find((key) => array instanceof ARRAYS[key]);
    header[name] = { dtype, shape, data_offsets: [length, (length += array.byteLength)] };
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const size = new DataView(new ArrayBuffer(8));
  size.setBigUint64(0, BigInt(text.length), true);
  return new Blob([size, text, ...Object.values(tensors).map(([array]) => array)]);
}

/** Reads a file as `{name: array}`. */
function decode(file) {
  const start = 8 + Number(new DataView(file).getBigUint64(0, true));
  const { __metadata__, ...entries } = JSON.parse(new TextDecoder().decode(file.slice(8, start)));
  const read = ({ dtype, data_offsets: [from, to] }) => new ARRAYS[dtype](file.slice(start + from, start + to));
  return Object.fromEntries(Object.entries(entries).map(([name, entry]) => [name, read(entry)]));
}

/** Evaluates tensors; the options are those of the API. */
async function crossEntropy(tensors, options) {
  const headers = { "Content-Type": "application/x-safetensors" };
  const response = await post(encode(tensors), headers, `?${new URLSearchParams(options)}`);
  return decode(await response.arrayBuffer());
}

const logits = new Float32Array([
  0.3703, -0.1607, -0.7473, -2.2135, //
  0.6929, -0.2042, -0.766, -0.3613, //
  -0.3363, 0.6417, 0.3103, 0.3132,
]);
const labels = new BigInt64Array([0n, 1n, 2n]);

try {
  const tensors = { logits: [logits, [3, 4]], labels: [labels, [3]] };
  const { loss, gradients } = await crossEntropy(tensors, { include: "loss,gradients" });
  console.log(loss[0]);
  for (let row = 0; row < 3; row++) console.log(gradients.subarray(4 * row, 4 * row + 4).join(" "));
} catch (error) {
  console.error(error.cause ? `${error.message}: ${error.cause}` : error.message);
  process.exitCode = 1;
}
