/**
 * Answers with the storage program's next number, and to /reach/PORT with what connecting there oneself gives:
 * deno run --allow-ffi --allow-net request_redis.ts PORT
 */
import { callText, KvmserverGuestError } from "../../guestlib/deno/kvmserverguest.ts";

async function reach(port: number): Promise<Response> {
  try {
    (await Deno.connect({ hostname: "127.0.0.1", port })).close();
    return new Response("connected");
  } catch (error) {
    return new Response((error as Error).name, { status: 403 });
  }
}

Deno.serve({ port: Number(Deno.args[0]) }, (request) => {
  const [, word, port] = new URL(request.url).pathname.split("/");
  if (word === "reach") return reach(Number(port));
  try {
    return new Response(callText("count"));
  } catch (error) {
    if (error instanceof KvmserverGuestError) return new Response(error.message, { status: 503 });
    throw error;
  }
});
