# Runs the conformance vectors and writes TAP, in this folder: Rscript conformance.R ../conformance.json
source("cross_entropy.R")

# The first difference, by the rules of ../README.md, or NULL.
difference <- function(expected, found, tolerance, place = "#") {
  differs <- sprintf("%s is %s, not %s", place, deparse(found)[1], deparse(expected)[1])
  if (is.list(expected)) {
    keys <- if (is.null(names(expected))) seq_along(expected) else names(expected)
    if (!is.list(found) || is.numeric(keys) && length(found) != length(expected)) return(differs)
    for (key in keys) {
      inside <- difference(expected[[key]], found[[key]], tolerance, paste0(place, "/", key))
      if (!is.null(inside)) return(inside)
    }
    return(NULL)
  }
  agrees <- if (is.numeric(expected) && is.numeric(found) && is.list(tolerance)) {
    abs(found - expected) <= tolerance$absolute + tolerance$relative * abs(expected)
  } else {
    identical(found, expected)
  }
  if (agrees) NULL else differs
}

vectors <- from_json(paste(readLines(commandArgs(TRUE)[1]), collapse = "\n"))$vectors
failures <- 0
for (index in seq_along(vectors)) {
  vector <- vectors[[index]]
  response <- post(to_json(vector$request))
  why <- if (response$status != vector$status) {
    paste("status", response$status)
  } else {
    difference(vector$response, from_json(response$body), vector$tolerance)
  }
  failures <- failures + !is.null(why)
  cat(if (is.null(why)) "ok" else "not ok", index, "-", vector$name, if (!is.null(why)) c("#", why), "\n")
}
cat(sprintf("1..%d\n", length(vectors)))
quit(status = if (failures > 0) 1 else 0)
