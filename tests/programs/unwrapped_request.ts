// The request side of unwrapped_storage.ts: deno run --allow-all unwrapped_request.ts PORT
const remote = Deno.dlopen("libkvmserverguest.so", {
  kvmserverguest_remote_resume: { parameters: ["buffer", "isize"], result: "isize" },
});

Deno.serve({ port: Number(Deno.args[0]) }, (request) => {
  const buffer = new Uint8Array(256);
  new TextEncoder().encodeInto(new URL(request.url).pathname.slice(1), buffer);
  const length = remote.symbols.kvmserverguest_remote_resume(buffer, buffer.length);
  if (length < 0n) return new Response(String(length), { status: 503 });
  return new Response(buffer.subarray(0, Number(length)));
});
