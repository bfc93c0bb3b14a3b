// The Node program: node hello.js PORT
const { createServer } = require("node:http");

createServer((_request, response) => response.end("hello")).listen(Number(process.argv[2]));
