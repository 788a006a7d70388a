/* Decoding with a key/value cache in plain C: each token's key and value join the cache, its query
 * reads what is in it, through a window of 32 keys and 4 sinks. One pass over the whole sequence
 * has to give the same outputs. */
#include <heed/attend.h>
#include <heed/parallel.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { TOKENS = 100, HEADS = 4, KV_HEADS = 2, DIM = 64 };

static float q[TOKENS][HEADS][DIM], k[TOKENS][KV_HEADS][DIM], v[TOKENS][KV_HEADS][DIM];
static float stepwise[TOKENS][HEADS][DIM], one_pass[TOKENS][HEADS][DIM];

/* A view of `tokens` tokens of a contiguous [TOKENS, heads, DIM] array, as [1, tokens, heads, DIM].
 */
static heed_view tokens_view(float* data, int64_t tokens, int64_t heads) {
  heed_view view = {data, HEED_FLOAT32, HEED_CPU, 4, {1, tokens, heads, DIM}, {0}};
  view.strides[0] = TOKENS * heads * DIM;
  view.strides[1] = heads * DIM;
  view.strides[2] = DIM;
  view.strides[3] = 1;
  return view;
}

static void fill(float* data, int n, unsigned* seed) {
  for (int i = 0; i < n; ++i) {
    *seed = *seed * 1664525u + 1013904223u;
    data[i] = (float)(*seed >> 8) / (float)(1 << 23) - 1.0f;
  }
}

int main(void) {
  unsigned seed = 1;
  fill(&q[0][0][0], TOKENS * HEADS * DIM, &seed);
  fill(&k[0][0][0], TOKENS * KV_HEADS * DIM, &seed);
  fill(&v[0][0][0], TOKENS * KV_HEADS * DIM, &seed);

  char message[256];
  heed_attend_options options;
  heed_attend_options_init(&options);
  options.window = 32;
  options.sinks = 4;
  heed_parallel* pool = heed_thread_pool_create(2);

  heed_attend_tensors tensors = {0};
  tensors.q = tokens_view(&q[0][0][0], TOKENS, HEADS);
  tensors.k = tokens_view(&k[0][0][0], TOKENS, KV_HEADS);
  tensors.v = tokens_view(&v[0][0][0], TOKENS, KV_HEADS);
  tensors.out = tokens_view(&one_pass[0][0][0], TOKENS, HEADS);
  if (heed_attend_forward(&tensors, &options, pool, message, sizeof message) != HEED_OK) {
    fprintf(stderr, "one pass: %s\n", message);
    return 1;
  }

  /* The arrays k and v are the cache; `filled` keys of it are there at each step. */
  for (int64_t t = 0; t < TOKENS; ++t) {
    const int64_t filled = t + 1;
    tensors.q = tokens_view(&q[t][0][0], 1, HEADS);
    tensors.out = tokens_view(&stepwise[t][0][0], 1, HEADS);
    tensors.kv_lengths = &filled;
    if (heed_attend_forward(&tensors, &options, pool, message, sizeof message) != HEED_OK) {
      fprintf(stderr, "token %d: %s\n", (int)t, message);
      return 1;
    }
  }

  double difference = 0, norm = 0;
  for (int i = 0; i < TOKENS * HEADS * DIM; ++i) {
    const double a = (&stepwise[0][0][0])[i], b = (&one_pass[0][0][0])[i];
    difference += (a - b) * (a - b);
    norm += b * b;
  }
  const double error = sqrt(difference / norm);
  printf("embed_c: %d tokens decoded, relative difference to one pass %.1e\n", TOKENS, error);

  /* A mistake is a status and a sentence, never a crash. */
  tensors.v = tokens_view(&v[0][0][0], TOKENS, HEADS);
  if (heed_attend_forward(&tensors, &options, pool, message, sizeof message) == HEED_OK) {
    fprintf(stderr, "values with the wrong number of heads were taken\n");
    return 1;
  }
  printf("embed_c: a wrong shape is refused: %s\n", message);

  heed_attend_release();
  heed_thread_pool_destroy(pool);
  return error < 1e-5 ? EXIT_SUCCESS : EXIT_FAILURE;
}
