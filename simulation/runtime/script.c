/* Keys and values: `key value` a line, or `key: value`; `#` begins a comment line; \n, \t, \\ and \xHH stand for their characters. */
#define _GNU_SOURCE
#include "script.h"

#include <ctype.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PLACEHOLDER_MAGIC "RKFLEET-SIMULATED\n"
#define TEST_MAGIC "RKLLMFAKE\n"

enum kind { NUMBER, REAL, FLAG, TEXT };

struct key {
    const char *name;
    enum kind kind;
    size_t at, size;
};

#define KEY(kind, field) {#field, kind, offsetof(struct script, field), sizeof(((struct script *)0)->field)}

static const struct key KEYS[] = {
    KEY(REAL, ttft_ms), KEY(REAL, tokens_per_s), KEY(REAL, memory_mb), KEY(NUMBER, seqlen), KEY(NUMBER, context_limit),
    KEY(NUMBER, npu_cores), KEY(NUMBER, width), KEY(NUMBER, vocabulary), KEY(TEXT, toolkit), KEY(TEXT, platform), KEY(TEXT, dtype),
    KEY(TEXT, driver), KEY(TEXT, reply), KEY(TEXT, reply_text), KEY(NUMBER, reply_tokens), KEY(FLAG, split_utf8), KEY(FLAG, null_text),
    KEY(NUMBER, late_results), KEY(FLAG, reply_varies), KEY(TEXT, numbers),
    KEY(FLAG, clear_ignored), KEY(FLAG, history_ignored), KEY(NUMBER, init_ms), KEY(NUMBER, init_code), KEY(FLAG, init_quiet_failure), KEY(FLAG, init_hang),
    KEY(FLAG, init_crash), KEY(NUMBER, init_exit), KEY(NUMBER, npu_memory), KEY(FLAG, npu_memory_crash), KEY(NUMBER, run_code),
    KEY(NUMBER, error_at), KEY(NUMBER, error_code), KEY(NUMBER, hang_at), KEY(FLAG, hang_ignores_abort), KEY(NUMBER, crash_at),
    KEY(NUMBER, exit_at), KEY(NUMBER, exit_code), KEY(NUMBER, abort_ms), KEY(FLAG, abort_at_token), KEY(REAL, heat_factor),
    KEY(REAL, heat_seconds), KEY(NUMBER, matmul_failures), KEY(NUMBER, token_lines), KEY(FLAG, run_times), KEY(NUMBER, abort_code),
    KEY(NUMBER, destroy_code), KEY(NUMBER, lora_code),
    KEY(NUMBER, load_cache_code), KEY(NUMBER, release_cache_code), KEY(NUMBER, clear_code), KEY(NUMBER, size_code),
    KEY(NUMBER, template_code), KEY(NUMBER, tools_code), KEY(FLAG, tools_stay),
};

/* What placeholders call the same things. */
static const char *const ALIASES[][2] = {
    {"ttftMs", "ttft_ms"}, {"tokensPerS", "tokens_per_s"}, {"memoryMb", "memory_mb"}, {"sdkVersion", "toolkit"}, {"soc", "platform"},
};

void script_defaults(struct script *script)
{
    memset(script, 0, sizeof *script);
    script->ttft_ms = 20;
    script->tokens_per_s = 200;
    script->seqlen = 64;
    script->context_limit = 4096;
    script->npu_cores = 3;
    script->width = 64;
    script->vocabulary = 512;
    strcpy(script->platform, "RK3588");
    strcpy(script->dtype, "w8a8");
    strcpy(script->driver, "0.9.8");
    strcpy(script->reply, "sentence");
    script->reply_tokens = 32;
    script->init_exit = script->error_at = script->hang_at = script->crash_at = script->exit_at = -1;
    script->error_code = -1;
    script->exit_code = 1;
    script->heat_factor = 1;
}

static void unescape(char *to, size_t size, const char *from)
{
    size_t length = 0;
    while (*from && length + 1 < size) {
        unsigned byte;
        if (from[0] == '\\' && from[1] == 'x' && sscanf(from + 2, "%2x", &byte) == 1) {
            to[length++] = (char)byte;
            from += 4;
        } else if (from[0] == '\\' && from[1] && strchr("nt\\", from[1])) {
            to[length++] = from[1] == 'n' ? '\n' : from[1] == 't' ? '\t' : '\\';
            from += 2;
        } else {
            to[length++] = *from++;
        }
    }
    to[length] = 0;
}

static bool set(struct script *script, const char *name, const char *value)
{
    for (size_t i = 0; i < sizeof ALIASES / sizeof *ALIASES; i++)
        if (!strcmp(name, ALIASES[i][0]))
            name = ALIASES[i][1];
    for (size_t i = 0; i < sizeof KEYS / sizeof *KEYS; i++) {
        if (strcmp(name, KEYS[i].name))
            continue;
        char *field = (char *)script + KEYS[i].at;
        switch (KEYS[i].kind) {
        case NUMBER: *(long *)field = strtol(value, NULL, 0); break;
        case REAL: *(double *)field = strtod(value, NULL); break;
        case FLAG: *(bool *)field = strtol(value, NULL, 0) != 0; break;
        case TEXT: unescape(field, KEYS[i].size, value); break;
        }
        return true;
    }
    return false;
}

/* What is divided by is not 0, and what is allocated is not more than a script may ask for. */
static void keep_in_bounds(struct script *script)
{
    script->tokens_per_s = script->tokens_per_s > 0.01 ? script->tokens_per_s : 0.01;
    script->vocabulary = script->vocabulary < 1 ? 1 : script->vocabulary > 262144 ? 262144 : script->vocabulary;
    script->width = script->width < 1 ? 1 : script->width > 16384 ? 16384 : script->width;
    script->heat_factor = script->heat_factor > 0.01 ? script->heat_factor : 0.01;
}

static void parse(struct script *script, char *text, bool until_blank)
{
    char *rest = text;
    for (char *line; (line = strsep(&rest, "\n"));) {
        if (!*line && until_blank)
            return;
        if (!*line || *line == '#')
            continue;
        size_t length = strcspn(line, " :");
        char *value = line + length;
        value += *value == ':';
        value += *value == ' ';
        line[length] = 0;
        if (!set(script, line, value) && !until_blank)
            dprintf(2, "W rkllm: simulation: unknown key %s\n", line);
    }
    keep_in_bounds(script);
}

/* Returns the bytes of the file's beginning, NUL-terminated in `buffer`, or -1. */
static ssize_t read_head(const char *path, char *buffer, off_t *size)
{
    struct stat status;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return -1;
    ssize_t length = fstat(file, &status) ? -1 : read(file, buffer, SCRIPT_BYTES_MAX);
    close(file);
    buffer[length < 0 ? 0 : length] = 0;
    *size = status.st_size;
    return length;
}

enum model_kind script_read_model(struct script *script, const char *path, unsigned long long *hash)
{
    static char buffer[SCRIPT_BYTES_MAX + 1];
    off_t size;
    ssize_t length = read_head(path, buffer, &size);
    if (length < 0)
        return MODEL_UNREADABLE;
    *hash = 0xcbf29ce484222325ULL ^ (unsigned long long)size;
    for (ssize_t i = 0; i < length; i++)
        *hash = (*hash ^ (unsigned char)buffer[i]) * 0x100000001b3ULL;
    if (!strncmp(buffer, TEST_MAGIC, strlen(TEST_MAGIC))) {
        parse(script, buffer + strlen(TEST_MAGIC), true);
        return MODEL_TEST;
    }
    if (strncmp(buffer, PLACEHOLDER_MAGIC, strlen(PLACEHOLDER_MAGIC)))
        return MODEL_FOREIGN;
    script->reply_tokens = 256; /* as the longer protocol of the vendor's table measures */
    parse(script, buffer + strlen(PLACEHOLDER_MAGIC), true);
    for (char *letter = script->platform; *letter; letter++)
        *letter = (char)toupper((unsigned char)*letter);
    script->npu_cores = strcmp(script->platform, "RK3588") ? 2 : 3;
    return MODEL_PLACEHOLDER;
}

bool script_read_environment(struct script *script)
{
    static char buffer[SCRIPT_BYTES_MAX + 1];
    off_t size;
    const char *path = getenv("RKLLM_SIMULATION");
    if (!path || !*path)
        return true;
    if (read_head(path, buffer, &size) < 0)
        return false;
    parse(script, buffer, false);
    return true;
}
