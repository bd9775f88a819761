# Cross-entropy over HTTP in base R: Rscript cross_entropy.R
#
# Base R has no HTTP client that can post, but plain HTTP takes no more than a socket. For HTTPS use httr2 or curl.

base_url <- Sys.getenv("LOSSEVAL_URL", "http://127.0.0.1:8000")
timeout_s <- 10

# Named lists are objects, other lists arrays, matrices arrays of rows; NaN and infinities are strings.
to_json <- function(x) {
  if (is.matrix(x)) x <- lapply(seq_len(nrow(x)), function(row) as.list(x[row, ]))
  if (is.null(x)) return("null")
  if (is.list(x) && is.null(names(x))) return(paste0("[", paste(vapply(x, to_json, ""), collapse = ","), "]"))
  if (is.list(x)) return(paste0("{", paste0('"', names(x), '":', vapply(x, to_json, ""), collapse = ","), "}"))
  if (length(x) > 1) return(to_json(as.list(x)))
  if (is.logical(x)) return(if (x) "true" else "false")
  if (is.character(x)) return(encodeString(x, quote = '"'))
  if (is.finite(x)) sprintf("%.17g", x) else if (is.nan(x)) '"NaN"' else if (x > 0) '"Infinity"' else '"-Infinity"'
}

# Objects and arrays become lists; as.numeric reads the strings that stand for NaN and infinities.
from_json <- function(text) {
  tokens <- regmatches(text, gregexpr('"(\\\\.|[^"\\\\])*"|[-+.0-9A-Za-z]+|[][{}]', text))[[1]]
  position <- 0
  value <- function() {
    token <- tokens[position <<- position + 1]
    if (token %in% c("[", "{")) {
      items <- list()
      while (!tokens[position + 1] %in% c("]", "}")) {
        key <- if (token == "{") value() else length(items) + 1
        items[key] <- list(value())
      }
      position <<- position + 1
      return(if (token == "{" && !length(items)) setNames(items, character()) else items)
    }
    if (startsWith(token, '"')) return(gsub("\\\\(.)", "\\1", substr(token, 2, nchar(token) - 1)))
    switch(token, true = TRUE, false = FALSE, null = NULL, as.numeric(token))
  }
  value()
}

# Posts JSON; returns the status and the body.
post <- function(body) {
  parts <- regmatches(base_url, regexec("^http://([^:/]+):?([0-9]*)(.*)$", base_url))[[1]]
  if (!length(parts)) stop("not an http:// address: ", base_url, call. = FALSE)
  port <- if (nzchar(parts[3])) as.integer(parts[3]) else 80L
  connection <- socketConnection(parts[2], port, open = "r+b", blocking = TRUE, timeout = timeout_s)
  on.exit(close(connection))
  request <- c(
    sprintf("POST %s/v1/cross-entropy HTTP/1.0", parts[4]), # 1.0: never chunked, closed at the end
    sprintf("Host: %s:%d", parts[2], port),
    "Content-Type: application/json",
    sprintf("X-Request-Timeout: %g", timeout_s),
    sprintf("Content-Length: %d", nchar(body, "bytes")),
    "", body
  )
  writeLines(paste(request, collapse = "\r\n"), connection, sep = "")
  answer <- readLines(connection, warn = FALSE, encoding = "UTF-8")
  if (!length(answer)) stop("no answer within ", timeout_s, " s")
  blank <- match("", answer)
  list(status = as.integer(strsplit(answer[1], " ")[[1]][2]), body = paste(answer[-seq_len(blank)], collapse = "\n"))
}

# Evaluates logits and labels with any of the API's options; a problem document (RFC 9457) is an error.
cross_entropy <- function(...) {
  response <- post(to_json(list(...)))
  if (response$status == 200) return(from_json(response$body))
  if (!startsWith(response$body, "{")) stop("HTTP ", response$status, " from ", base_url, call. = FALSE)
  problem <- from_json(response$body)
  stop(problem$title, ": ", problem$detail, call. = FALSE)
}

if (sys.nframe() == 0) {
  logits <- rbind(
    c(0.3703, -0.1607, -0.7473, -2.2135),
    c(0.6929, -0.2042, -0.7660, -0.3613),
    c(-0.3363, 0.6417, 0.3103, 0.3132)
  )
  answer <- cross_entropy(logits = logits, labels = list(0, 1, 2))
  cat(format(as.numeric(answer$loss), digits = 15), "\n", sep = "")
}
