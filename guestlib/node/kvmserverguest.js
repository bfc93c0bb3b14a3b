// SPDX-License-Identifier: Apache-2.0 OR MIT
/**
 * What a program inside kvmserver can ask of it: calls from request VMs to the storage program.
 *
 * Copy this directory, or this file and `npm install koffi` (Node has no way of its own to call a library). In a request VM:
 *
 *     const answer = call("count").toString();
 *
 * and in the storage program:
 *
 *     serve(() => String(++count));
 *
 * The meaning is that of kvmserverguest.h. Every failure is an Error with `code` and `errno` as those of Node's own.
 *
 * `call` and `serve` exchange *messages*: a request is what stands in the buffer before the zero bytes at its end, the result
 * is the length of the answer. `remoteResume` and `waitPaused` exchange the bare buffer.
 */
"use strict";

const koffi = require("koffi");
const { constants } = require("node:os");
const util = require("node:util");

/** Longest buffer of a call, bytes. */
const BUFFER_MAX = 16 << 20;

const { EAGAIN, EBADMSG, EDEADLK, EINVAL, EIO, EMSGSIZE, ENOMEM, ENOSYS, EPERM, EPIPE, ETIMEDOUT } = constants.errno;
const MEANINGS = {
  [EINVAL]: "bad buffer or length",
  [ENOSYS]: "there is no storage program",
  [EDEADLK]: "the storage program cannot call itself",
  [ETIMEDOUT]: "the storage program did not answer in time",
  [EPIPE]: "the storage program died in this call",
  [EAGAIN]: "the storage program is being started again",
  [EPERM]: "only the storage program can wait for calls",
  [EIO]: "the storage program failed to answer this request",
  [EMSGSIZE]: "the answer is longer than the capacity of the call",
  [EBADMSG]: "the storage program's result is no length of an answer",
  [ENOMEM]: "no shared memory is left, or there is no storage program",
};

/** A call or a wait that failed: `code` is the name of an errno, `errno` its negated number. */
class KvmserverGuestError extends Error {
  constructor(number, message = MEANINGS[number] ?? `error ${number}`) {
    super(message);
    this.name = "KvmserverGuestError";
    this.errno = -number;
    this.code = util.getSystemErrorName(-number);
  }
}

const functions = load();

function load() {
  let library;
  try {
    library = koffi.load("libkvmserverguest.so");
  } catch {
    return null;
  }
  const wait = library.func("int64_t kvmserverguest_storage_wait_paused(_Out_ void **buffer, int64_t result)");
  return {
    available: library.func("int kvmserverguest_available()"),
    remoteResume: library.func("int64_t kvmserverguest_remote_resume(void *buffer, int64_t len)"),
    wait,
    waitInThread: util.promisify(wait.async),
    sharedBuffer: library.func("void *kvmserverguest_shared_buffer(size_t len)"),
  };
}

function inside() {
  if (!available()) throw new KvmserverGuestError(ENOSYS, "not inside kvmserver");
  return functions;
}

function checked(result) {
  if (result < 0) throw new KvmserverGuestError(Number(-result));
  return Number(result);
}

function view(pointer, length) {
  return length ? Buffer.from(koffi.view(pointer, length)) : Buffer.alloc(0);
}

/** The version of the host's interface (at least 1), or 0 outside kvmserver. */
function available() {
  return functions ? functions.available() : 0;
}

/**
 * In a request VM: what the storage program's `serve` answers to a message of at most `capacity` bytes either way (a longer
 * request is its own capacity). The whole request VM stands still meanwhile.
 *
 * Throws RangeError for a request that ends in a zero byte, and KvmserverGuestError: EMSGSIZE where the answer is longer,
 * EIO where the handler failed, and what `remoteResume` throws.
 *
 * @param {string | Uint8Array} request
 * @param {number} [capacity]
 * @returns {Buffer}
 */
function call(request, capacity = 4096) {
  const message = Buffer.from(request);
  if (message.at(-1) === 0) throw new RangeError("a request cannot end in a zero byte");
  const buffer = Buffer.alloc(Math.max(message.length, capacity));
  message.copy(buffer);
  const length = remoteResume(buffer);
  if (length > buffer.length) throw new KvmserverGuestError(EBADMSG);
  return buffer.subarray(0, length);
}

/**
 * In a request VM: let the storage program see and change the buffer; its result. After a KvmserverGuestError the buffer's
 * content is unspecified.
 *
 * @param {Uint8Array} buffer
 * @returns {number}
 */
function remoteResume(buffer) {
  return checked(inside().remoteResume(buffer, buffer.length));
}

/**
 * In the storage program: answer every message with what `handler` gives, one at a time, for ever. The event loop goes on
 * while nobody calls and while the handler awaits something. An exception of the handler is printed and given to the
 * caller as EIO. The promise is rejected with a KvmserverGuestError where there is nothing to wait for: EPERM in a request
 * VM, ENOSYS outside kvmserver.
 *
 * @param {(request: Buffer) => string | Uint8Array | Promise<string | Uint8Array>} handler A request is valid only until it
 * has answered.
 * @returns {Promise<never>}
 */
async function serve(handler) {
  let result = 0;
  while (true) {
    const buffer = await waitPaused(result);
    try {
      const message = Buffer.from(await handler(buffer.subarray(0, buffer.findLastIndex((byte) => byte !== 0) + 1)));
      result = message.length > buffer.length ? -EMSGSIZE : message.copy(buffer);
    } catch (error) {
      console.error(error);
      result = -EIO;
    }
  }
}

/**
 * In the storage program: give `result` to the caller that waits (ignored the first time); the buffer of the next call. It
 * can be read and written until the next wait, and must not be touched later. The event loop goes on meanwhile; one
 * thread of libuv's pool waits.
 *
 * @param {number} [result]
 * @returns {Promise<Buffer>}
 */
async function waitPaused(result = 0) {
  const pointer = [null];
  const length = checked(await inside().waitInThread(pointer, result));
  return view(pointer[0], length);
}

/**
 * As `waitPaused` on this thread: a shorter way to the answer, and the event loop stands still.
 *
 * @param {number} [result]
 * @returns {Buffer}
 */
function waitPausedSync(result = 0) {
  const pointer = [null];
  const length = checked(inside().wait(pointer, result));
  return view(pointer[0], length);
}

/**
 * In a request VM: zeroed memory that the storage program can reach too, so that calls with it copy nothing. The storage
 * program may read and write it at any time. Throws KvmserverGuestError with ENOMEM where none is left.
 *
 * @param {number} length
 * @returns {Buffer}
 */
function sharedBuffer(length) {
  const pointer = inside().sharedBuffer(length);
  if (!pointer) throw new KvmserverGuestError(ENOMEM);
  return view(pointer, length);
}

module.exports = {
  BUFFER_MAX,
  KvmserverGuestError,
  available,
  call,
  remoteResume,
  serve,
  waitPaused,
  waitPausedSync,
  sharedBuffer,
};
