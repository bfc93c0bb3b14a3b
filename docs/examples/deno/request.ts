// A server that answers every request with the storage program's next number: deno run --allow-all request.ts PORT
import { available, callText, KvmserverGuestError } from "../../../guestlib/deno/kvmserverguest.ts";

if (!available()) {
  console.error("not inside kvmserver");
  Deno.exit(1);
}
Deno.serve({ port: Number(Deno.args[0]) }, () => {
  try {
    return new Response(callText("count"));
  } catch (error) {
    if (error instanceof KvmserverGuestError) return new Response(error.message, { status: 503 });
    throw error;
  }
});
