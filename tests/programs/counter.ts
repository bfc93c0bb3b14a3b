// A counter in a global, as in the README: deno run --allow-all counter.ts [PORT]
let count = 0;

Deno.serve({ port: Number(Deno.args[0] ?? 8000) }, () => new Response(String(++count)));
