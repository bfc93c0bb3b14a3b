-- For wrk, with one thread: writes every status and body to the file that is named in $ANSWERS, a line each.
local answers

function init()
  answers = assert(io.open(os.getenv("ANSWERS"), "w"))
  answers:setvbuf("line")
end

function response(status, _, body)
  answers:write(status, " ", body, "\n")
end
