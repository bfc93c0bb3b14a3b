// A server that answers every request with the storage program's next number: node request.js PORT
const http = require("node:http");
const { available, call } = require("kvmserverguest");

if (!available()) {
  console.error("not inside kvmserver");
  process.exit(1);
}
http
  .createServer((_request, response) => {
    try {
      response.end(call("count"));
    } catch (error) {
      response.writeHead(503).end(error.message);
    }
  })
  .listen(Number(process.argv[2]));
