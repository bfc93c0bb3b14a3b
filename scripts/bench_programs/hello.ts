// The Deno row: deno run --allow-net hello.ts PORT
Deno.serve({ port: Number(Deno.args[0]) }, () => new Response("hello"));
