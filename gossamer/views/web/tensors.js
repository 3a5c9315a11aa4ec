// @ts-check
// Reads a safetensors blob: typed arrays that look into its buffer, and the JSON of its metadata.

const TYPES = { F32: Float32Array, I32: Int32Array };

/**
 * @param {DataView} blob
 * @returns {{arrays: Object<string, any>, about: any}}
 */
export function readTensors(blob) {
  const length = Number(blob.getBigUint64(0, true));
  const text = new Uint8Array(blob.buffer, blob.byteOffset + 8, length);
  const { __metadata__: metadata, ...tensors } = JSON.parse(new TextDecoder().decode(text));
  const start = blob.byteOffset + 8 + length;
  const arrays = {};
  for (const [name, { dtype, data_offsets: [begin, end] }] of Object.entries(tensors)) {
    const Type = TYPES[dtype];
    const size = (end - begin) / Type.BYTES_PER_ELEMENT;
    // A view must begin at a multiple of its element size; a frame of a host may not be aligned.
    const aligned = (start + begin) % Type.BYTES_PER_ELEMENT === 0;
    arrays[name] = aligned
      ? new Type(blob.buffer, start + begin, size)
      : new Type(blob.buffer.slice(start + begin, start + end));
  }
  return { arrays, about: JSON.parse(metadata.json) };
}
