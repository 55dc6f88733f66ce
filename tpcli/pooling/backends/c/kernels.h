/* What `module.c` offers to Python, on bare arrays; 0 where it was computed. The Python side has
   checked all shapes. */

#ifndef tpcli_KERNELS_H
#define tpcli_KERNELS_H

#include <stdint.h>

typedef struct {
    int64_t batch, tokens, channels; /* B, N, C */
    int threads;
} Shape;

/* (B, N, C), or (B, P + N, C), float32 or bfloat16; dense along C. Strides count elements. */
typedef struct {
    const void *values;
    int64_t sample_stride, token_stride;
    int bfloat16;
} Tokens;

/* ward.ward. candidates: how many tokens take part, by a sketch of all; N for all. merges: in each
   of `rounds` rounds. normalized: a layer norm is still to be applied. The others: constants.py. */
typedef struct {
    int64_t candidates, rounds;
    const int64_t *merges;
    int normalized;
    int64_t sketch_dim;
    float reluctance, far, layer_norm_epsilon, shrink, least_product;
    int64_t places;
} Ward;

/* clusters.reduce_tokens: whether means are as long as their members. The others: constants.py. */
typedef struct {
    int keep;
    float largest_stretch, least;
} Norms;

/* clusters.Clusters: lead (B, K), followers and into (B, N - K); NULL where nobody wants them. */
typedef struct {
    int64_t k, *lead, *followers, *into;
} Clusters;

/* z: float32. weights (B, N) -> labels (B, N), each the lowest member of its cluster.
   Returns -1 if out of memory or if a weight is not positive and finite. */
int ward_labels(Shape shape, Tokens z, const float *weights, Ward ward, int64_t *labels);

/* clusters.merge_tokens: labels, counted, shares (B, N) -> clusters, sizes (B, K), means
   (B, P + K, C) of the type of x. Returns -1 if out of memory or if labels don't form exactly K
   clusters. */
int merge_tokens(Shape shape, Tokens x, int64_t prefix, const int64_t *labels,
                 const float *counted, const float *shares, Norms norms, Clusters clusters,
                 float *sizes, void *means);

#endif
