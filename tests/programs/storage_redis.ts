/**
 * A counter in Redis: every call adds one, and its answer is the number that Redis gave. Over the same connection it goes on
 * counting `ticks` every 50 ms by itself: deno run --allow-ffi --allow-net storage_redis.ts PORT
 */
import { serve } from "../../guestlib/deno/kvmserverguest.ts";

/** As much of a Redis client as this needs: commands that may overlap, and answers that are integers. */
class Redis {
  #waiting: { resolve: (answer: number) => void; reject: (error: Error) => void }[] = [];

  constructor(private readonly connection: Deno.TcpConn) {
    this.#read();
  }

  command(...words: string[]): Promise<number> {
    const text = `*${words.length}\r\n` + words.map((word) => `$${word.length}\r\n${word}\r\n`).join("");
    const answered = new Promise<number>((resolve, reject) => this.#waiting.push({ resolve, reject }));
    // Far below what a socket takes at once, so commands cannot be cut and mixed.
    this.connection.write(new TextEncoder().encode(text)).catch((error) => this.#fail(error));
    return answered;
  }

  async #read() {
    const piece = new Uint8Array(4096), decoder = new TextDecoder();
    let text = "";
    try {
      for (let got; (got = await this.connection.read(piece)) !== null;) {
        const lines = (text + decoder.decode(piece.subarray(0, got))).split("\r\n");
        text = lines.pop()!;
        lines.forEach((line) => this.#answer(line));
      }
      this.#fail(new Error("Redis has closed the connection"));
    } catch (error) {
      this.#fail(error as Error);
    }
  }

  #answer(line: string) {
    const { resolve, reject } = this.#waiting.shift()!;
    if (line.startsWith(":")) resolve(Number(line.slice(1)));
    else reject(new Error(`Redis says ${line}`));
  }

  #fail(error: Error) {
    this.#waiting.splice(0).forEach(({ reject }) => reject(error));
  }
}

const redis = new Redis(await Deno.connect({ hostname: "127.0.0.1", port: Number(Deno.args[0]) }));
setInterval(() => redis.command("INCR", "ticks"), 50);
await serve(async () => String(await redis.command("INCR", "numbers")));
