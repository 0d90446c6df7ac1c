-- call(words): redis.call(unpack(words)) for any number of words.
-- unpack returns at most about 8,000 values, and Lua expands only the last call of an argument list, so the results of
-- several unpacks can't be joined. unpack supplies the last 7,000 words here. A Lua function may have any number of
-- arguments, so the words before them are prepended, 200 in each step (a function has 250 registers). Each step copies
-- all arguments: 10,000 fields take the server 7 ms (a plain XADD 2 ms), and 100,000 a quarter of a second.
local function call_prepending(w, n, ...)
  if n == 0 then
    return redis.call(...)
  elseif n < 200 then
    return call_prepending(w, n - 1, w[n], ...)
  end
  return call_prepending(w, n - 200,
    w[n-199], w[n-198], w[n-197], w[n-196], w[n-195], w[n-194], w[n-193], w[n-192], w[n-191], w[n-190],
    w[n-189], w[n-188], w[n-187], w[n-186], w[n-185], w[n-184], w[n-183], w[n-182], w[n-181], w[n-180],
    w[n-179], w[n-178], w[n-177], w[n-176], w[n-175], w[n-174], w[n-173], w[n-172], w[n-171], w[n-170],
    w[n-169], w[n-168], w[n-167], w[n-166], w[n-165], w[n-164], w[n-163], w[n-162], w[n-161], w[n-160],
    w[n-159], w[n-158], w[n-157], w[n-156], w[n-155], w[n-154], w[n-153], w[n-152], w[n-151], w[n-150],
    w[n-149], w[n-148], w[n-147], w[n-146], w[n-145], w[n-144], w[n-143], w[n-142], w[n-141], w[n-140],
    w[n-139], w[n-138], w[n-137], w[n-136], w[n-135], w[n-134], w[n-133], w[n-132], w[n-131], w[n-130],
    w[n-129], w[n-128], w[n-127], w[n-126], w[n-125], w[n-124], w[n-123], w[n-122], w[n-121], w[n-120],
    w[n-119], w[n-118], w[n-117], w[n-116], w[n-115], w[n-114], w[n-113], w[n-112], w[n-111], w[n-110],
    w[n-109], w[n-108], w[n-107], w[n-106], w[n-105], w[n-104], w[n-103], w[n-102], w[n-101], w[n-100],
    w[n-99], w[n-98], w[n-97], w[n-96], w[n-95], w[n-94], w[n-93], w[n-92], w[n-91], w[n-90],
    w[n-89], w[n-88], w[n-87], w[n-86], w[n-85], w[n-84], w[n-83], w[n-82], w[n-81], w[n-80],
    w[n-79], w[n-78], w[n-77], w[n-76], w[n-75], w[n-74], w[n-73], w[n-72], w[n-71], w[n-70],
    w[n-69], w[n-68], w[n-67], w[n-66], w[n-65], w[n-64], w[n-63], w[n-62], w[n-61], w[n-60],
    w[n-59], w[n-58], w[n-57], w[n-56], w[n-55], w[n-54], w[n-53], w[n-52], w[n-51], w[n-50],
    w[n-49], w[n-48], w[n-47], w[n-46], w[n-45], w[n-44], w[n-43], w[n-42], w[n-41], w[n-40],
    w[n-39], w[n-38], w[n-37], w[n-36], w[n-35], w[n-34], w[n-33], w[n-32], w[n-31], w[n-30],
    w[n-29], w[n-28], w[n-27], w[n-26], w[n-25], w[n-24], w[n-23], w[n-22], w[n-21], w[n-20],
    w[n-19], w[n-18], w[n-17], w[n-16], w[n-15], w[n-14], w[n-13], w[n-12], w[n-11], w[n-10],
    w[n-9], w[n-8], w[n-7], w[n-6], w[n-5], w[n-4], w[n-3], w[n-2], w[n-1], w[n], ...)
end
local function call(words)
  local first = math.max(1, #words - 6999)
  return call_prepending(words, first - 1, unpack(words, first))
end
