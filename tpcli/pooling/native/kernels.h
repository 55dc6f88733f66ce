/* What `module.c` offers to Python, on bare arrays: 0, or -1 where it could not be computed. */

#ifndef TPCLI_KERNELS_H
#define TPCLI_KERNELS_H

#include <stdint.h>

typedef struct {
    int64_t batch, tokens, channels; /* B, N, C */
    int threads;
} Shape;

/* (B, N, C), or (B, P + N, C), float32 or, where `half`, bfloat16; dense along C. Strides count
   elements. */
typedef struct {
    const void *values;
    int64_t sample_stride, token_stride;
    int half;
} Tokens;

/* ward.ward. candidates: how many tokens take part, by a sketch of all; N for all. merges: in each
   of `rounds` rounds. normalized: a layer norm is still to be applied. */
typedef struct {
    int64_t candidates, rounds;
    const int64_t *merges;
    int normalized;
} Ward;

/* clusters.Clusters: lead (B, K), followers and into (B, N - K); NULL where nobody wants them. */
typedef struct {
    int64_t k, *lead, *followers, *into;
} Clusters;

/* z: float32. weights (B, N) -> labels (B, N), each the lowest member of its cluster.
   Fails where there is no memory. */
int ward_labels(Shape shape, Tokens z, const float *weights, Ward ward, int64_t *labels);

/* clusters.merge_tokens: labels, counted, shares (B, N) -> clusters, sizes (B, K), means
   (B, P + K, C) of the type of x. Fails where there is no memory, or are not K clusters. */
int merge_tokens(Shape shape, Tokens x, int64_t prefix, const int64_t *labels,
                 const float *counted, const float *shares, int keep_norms, Clusters clusters,
                 float *sizes, void *means);

#endif
