-- Prints how many milliseconds a hot loop takes, and its result: luajit speed.lua
local function work()
  local state = 1
  for _ = 1, 50000000 do state = (state * 1103 + 12345) % 2147483648 end
  return state
end

work()
local start = os.clock()
local result = work()
print(string.format("%.1f %d %s", (os.clock() - start) * 1000, result, tostring(jit.status())))
