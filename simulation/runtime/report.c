/* The version that the library says it has, and the table that it prints after a run. */
#define _GNU_SOURCE
#include "model.h"

#include <stdlib.h>
#include <string.h>

#ifdef VERSION_LITERAL
/* Releases have their version in the file as a string of its own; this is how a library is told apart without calling it. */
__attribute__((used)) static const char version_literal[] = "\0" VERSION_LITERAL;
#endif
/* Read by rkfleet in the file: nothing that such a library says or measures may pass for a figure of an NPU. */
__attribute__((used)) static const char simulated_mark[] = "RKFLEET-SIMULATED-RUNTIME";
static const volatile unsigned char version_masked[] = {VERSION_MASKED, 0x5a};
char version[32];

long log_level(void)
{
    const char *level = getenv("RKLLM_LOG_LEVEL");
    return level ? strtol(level, NULL, 10) : 0;
}

__attribute__((constructor)) static void decode_version(void)
{
    for (size_t i = 0; i + 1 < sizeof version && version_masked[i] != 0x5a; i++)
        version[i] = (char)(version_masked[i] ^ 0x5a);
}

double memory_mb(const struct script *script)
{
    char line[128];
    double kilobytes = 0;
    FILE *status = script->memory_mb > 0 ? NULL : fopen("/proc/self/status", "re");
    if (!status)
        return script->memory_mb;
    while (fgets(line, sizeof line, status))
        if (sscanf(line, "VmHWM: %lf", &kilobytes) == 1)
            break;
    fclose(status);
    return kilobytes / 1024;
}

void print_table(struct model *model, double prefill_ms, size_t prefill_tokens, double generate_ms, size_t generate_tokens)
{
    static const char rule[] = "--------------------------------------------------------------------------------------";
#if GENERATION >= 2
    if (!model->table_printed) {
        LINE("I", "%s", rule);
        LINE("I", " Model init time (ms)  %.2f", model->init_ns / 1e6);
    }
#endif
    model->table_printed = true;
    LINE("I", "%s", rule);
    LINE("I", " Stage         Total Time (ms)  Tokens    Time per Token (ms)      Tokens per Second");
    LINE("I", "%s", rule);
    LINE("I", " Prefill       %-16.2f %-9zu %-24.2f %.2f", prefill_ms, prefill_tokens, prefill_ms / (prefill_tokens ? prefill_tokens : 1),
         prefill_ms > 0 ? prefill_tokens * 1000 / prefill_ms : 0);
    LINE("I", " Generate      %-16.2f %-9zu %-24.2f %.2f", generate_ms, generate_tokens, generate_ms / (generate_tokens ? generate_tokens : 1),
         generate_ms > 0 ? generate_tokens * 1000 / generate_ms : 0);
    LINE("I", "%s", rule);
#if GENERATION == 1
    LINE("I", " Memory Usage (GB)");
    LINE("I", " %.2f", memory_mb(&model->script) / 1024);
#elif GENERATION <= 3
    LINE("I", " Peak Memory Usage (GB)");
    LINE("I", " %.2f", memory_mb(&model->script) / 1024);
#else
    LINE("I", " Peak Memory Usage (MB)");
    LINE("I", " %.2f", memory_mb(&model->script));
#endif
    LINE("I", "%s", rule);
}
