// SPDX-License-Identifier: Apache-2.0 OR MIT
/**
 * What a program inside kvmserver can ask of it: calls from request VMs to the storage program.
 *
 * Copy this file; Deno needs `--allow-ffi`. In a request VM:
 *
 *     const answer = callText("count");
 *
 * and in the storage program:
 *
 *     await serve(() => String(++count));
 *
 * The meaning is that of kvmserverguest.h. Every failure is a `KvmserverGuestError` with the errno listed there.
 *
 * `call` and `serve` exchange *messages*: a request is what stands in the buffer before the zero bytes at its end, the result
 * is the length of the answer. `remoteResume` and `waitPaused` exchange the bare buffer.
 *
 * @module
 */

/** Longest buffer of a call, bytes. */
export const BUFFER_MAX = 16 << 20;

const EIO = 5, EAGAIN = 11, ENOMEM = 12, EINVAL = 22, EPIPE = 32, EDEADLK = 35, ENOSYS = 38, EBADMSG = 74, EMSGSIZE = 90;
const MEANINGS: Record<number, string> = {
  1: "only the storage program can wait for calls",
  [EIO]: "the storage program failed to answer this request",
  [EAGAIN]: "the storage program is being started again",
  [ENOMEM]: "no shared memory is left, or there is no storage program",
  [EINVAL]: "bad buffer or length",
  [EPIPE]: "the storage program died in this call",
  [EDEADLK]: "the storage program cannot call itself",
  [ENOSYS]: "there is no storage program",
  [EBADMSG]: "the storage program's result is no length of an answer",
  [EMSGSIZE]: "the answer is longer than the capacity of the call",
  110: "the storage program did not answer in time",
};

/** A call or a wait that failed; `errno` says why, as in kvmserverguest.h. */
export class KvmserverGuestError extends Error {
  override readonly name = "KvmserverGuestError";

  constructor(readonly errno: number, message = MEANINGS[errno] ?? `error ${errno}`) {
    super(message);
  }
}

const SYMBOLS = {
  kvmserverguest_available: { parameters: [], result: "i32" },
  kvmserverguest_remote_resume: { parameters: ["buffer", "isize"], result: "isize" },
  kvmserverguest_storage_wait_paused: { parameters: ["buffer", "isize"], result: "isize" },
  /** The same in a thread of its own, while the event loop goes on. */
  wait_in_thread: { name: "kvmserverguest_storage_wait_paused", parameters: ["buffer", "isize"], result: "isize", nonblocking: true },
  kvmserverguest_shared_buffer: { parameters: ["usize"], result: "pointer" },
} as const;

type Symbols = Deno.DynamicLibrary<typeof SYMBOLS>["symbols"];

let loaded: Symbols | null | undefined;

function load(): Symbols | null {
  try {
    return Deno.dlopen("libkvmserverguest.so", SYMBOLS).symbols;
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    return null;
  }
}

function inside(): Symbols {
  if (!available()) throw new KvmserverGuestError(ENOSYS, "not inside kvmserver");
  return loaded!;
}

function checked(result: bigint): number {
  if (result < 0n) throw new KvmserverGuestError(Number(-result));
  return Number(result);
}

function view(address: bigint, length: number): Uint8Array<ArrayBuffer> {
  const pointer = Deno.UnsafePointer.create(address);
  return new Uint8Array(pointer && length ? Deno.UnsafePointerView.getArrayBuffer(pointer, length) : new ArrayBuffer(0));
}

/** The version of the host's interface (at least 1), or 0 outside kvmserver. */
export function available(): number {
  loaded = loaded === undefined ? load() : loaded;
  return loaded ? loaded.kvmserverguest_available() : 0;
}

/**
 * In a request VM: what the storage program's `serve` answers to a message of at most `capacity` bytes either way (a longer
 * request is its own capacity). The whole request VM stands still meanwhile.
 *
 * @throws {RangeError} for a request that ends in a zero byte.
 * @throws {KvmserverGuestError} EMSGSIZE where the answer is longer, EIO where the handler failed, and as `remoteResume`.
 */
export function call(request: string | Uint8Array, capacity = 4096): Uint8Array<ArrayBuffer> {
  const message = typeof request === "string" ? new TextEncoder().encode(request) : request;
  if (message.at(-1) === 0) throw new RangeError("a request cannot end in a zero byte");
  const buffer = new Uint8Array(Math.max(message.length, capacity));
  buffer.set(message);
  const length = remoteResume(buffer);
  if (length > buffer.length) throw new KvmserverGuestError(EBADMSG);
  return buffer.subarray(0, length);
}

/** As `call`, with an answer that is text. */
export function callText(request: string | Uint8Array, capacity = 4096): string {
  return new TextDecoder().decode(call(request, capacity));
}

/**
 * In a request VM: let the storage program see and change the buffer; its result.
 *
 * @throws {KvmserverGuestError} and then the buffer's content is unspecified.
 */
export function remoteResume(buffer: Uint8Array<ArrayBuffer>): number {
  return checked(inside().kvmserverguest_remote_resume(buffer, BigInt(buffer.length)));
}

/** What answers messages; a request is valid only until the handler has answered. */
export type Handler = (request: Uint8Array) => string | Uint8Array | Promise<string | Uint8Array>;

/**
 * In the storage program: answer every message with what `handler` gives, one at a time, for ever. The event loop goes on
 * while nobody calls and while the handler awaits something. An exception of the handler is printed and given to the
 * caller as EIO.
 *
 * @throws {KvmserverGuestError} where there is nothing to wait for: EPERM in a request VM, ENOSYS outside kvmserver.
 */
export async function serve(handler: Handler): Promise<never> {
  let result = 0;
  while (true) {
    const buffer = await waitPaused(result);
    try {
      const request = buffer.subarray(0, buffer.findLastIndex((byte) => byte !== 0) + 1);
      const answer = await handler(request);
      const message = typeof answer === "string" ? new TextEncoder().encode(answer) : answer;
      result = message.length > buffer.length ? -EMSGSIZE : message.length;
      if (result >= 0) buffer.set(message);
    } catch (error) {
      console.error(error);
      result = -EIO;
    }
  }
}

/**
 * In the storage program: give `result` to the caller that waits (ignored the first time); the buffer of the next call. It
 * can be read and written until the next wait, and must not be touched later. The event loop goes on meanwhile.
 */
export async function waitPaused(result = 0): Promise<Uint8Array<ArrayBuffer>> {
  const pointer = new BigUint64Array(1);
  const length = checked(await inside().wait_in_thread(pointer, BigInt(result)));
  return view(pointer[0], length);
}

/** As `waitPaused` on this thread: a shorter way to the answer, and the event loop stands still. */
export function waitPausedSync(result = 0): Uint8Array<ArrayBuffer> {
  const pointer = new BigUint64Array(1);
  const length = checked(inside().kvmserverguest_storage_wait_paused(pointer, BigInt(result)));
  return view(pointer[0], length);
}

/**
 * In a request VM: zeroed memory that the storage program can reach too, so that calls with it copy nothing. The storage
 * program may read and write it at any time.
 *
 * @throws {KvmserverGuestError} ENOMEM where none is left.
 */
export function sharedBuffer(length: number): Uint8Array<ArrayBuffer> {
  const pointer = inside().kvmserverguest_shared_buffer(BigInt(length));
  if (pointer === null) throw new KvmserverGuestError(ENOMEM);
  return new Uint8Array(Deno.UnsafePointerView.getArrayBuffer(pointer, length));
}
