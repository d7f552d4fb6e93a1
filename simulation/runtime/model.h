/* A loaded model of the simulation, and what the parts of the source share. */
#ifndef MODEL_H
#define MODEL_H

#include "context.h"
#include "generation.h"
#include "script.h"

#include <stdatomic.h>
#include <stdio.h>

#define EXPORT __attribute__((visibility("default")))
#define ADAPTERS_MAX 8
#define PIECE_BYTES 96 /* of a token of an answer */

struct model {
    RKLLMParam parameters;
    LLMResultCallback callback;
    void *default_userdata;
    struct script about;  /* what the model file says */
    struct script script; /* with the script of this run over it */
    uint64_t hash;
    bool broken;
    long long init_ns, first_run_ns;
    bool table_printed;
    unsigned long runs;
    struct sequence kv, cached;
    size_t system_tokens;
    char *system, *prefix, *postfix, *tools;
    bool custom_template;
    char adapters[ADAPTERS_MAX][64];
    size_t adapter_count;
    void *previous_userdata;
    atomic_bool busy, aborted;
};

struct piece {
    char text[PIECE_BYTES];
    bool waiting;
};

#define LINE(letter, ...) (dprintf(1, letter " rkllm: " __VA_ARGS__), dprintf(1, "\n"))

/* report.c: what the library prints, and what it says that it is. */
extern char version[32];
long log_level(void);
double memory_mb(const struct script *script);
void print_table(struct model *model, double prefill_ms, size_t prefill_tokens, double generate_ms, size_t generate_tokens);

/* pace.c: time. */
long long now_ns(void);
bool wait_until(struct model *model, long long due);
void sleep_ms(long ms);
void crash(void);

/* answer.c: what a model sees of a request, and what it says to it. */
bool add_system(struct model *model, struct sequence *prompt);
bool add_prompt(struct model *model, const struct request *request, struct sequence *prompt);
float *numbers_of(struct model *model, const struct sequence *prompt, size_t width);
size_t answer(struct model *model, const struct request *request, struct piece *pieces, size_t most);

/* librkllmrt.c */
struct model *with_script(LLMHandle handle);

#endif
