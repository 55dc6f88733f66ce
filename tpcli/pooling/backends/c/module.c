/* The Python side: addresses of arrays in, whether it could be computed out. The interpreter goes on
   meanwhile. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernels.h"

#define MOST_ROUNDS 256

typedef unsigned long long Address;
#define SHAPE "(LLLi)"
#define TOKENS "(KLLp)"

static PyObject *py_ward_labels(PyObject *self, PyObject *args)
{
    (void)self;
    long long batch, tokens, channels, sample, token, candidates, sketch_dim, places;
    Address z, weights, labels;
    PyObject *plan;
    int threads, bfloat16, normalized, failed;
    float reluctance, far, epsilon, shrink, least_product;
    int64_t merges[MOST_ROUNDS];
    if (!PyArg_ParseTuple(args, SHAPE TOKENS "KLO!p(LfffffL)K", &batch, &tokens, &channels,
                          &threads, &z, &sample, &token, &bfloat16, &weights, &candidates, &PyList_Type,
                          &plan, &normalized, &sketch_dim, &reluctance, &far, &epsilon,
                          &shrink, &least_product, &places, &labels))
        return NULL;
    Py_ssize_t rounds = PyList_Size(plan);
    if (rounds > MOST_ROUNDS)
        Py_RETURN_FALSE;
    for (Py_ssize_t i = 0; i < rounds; i++)
        merges[i] = PyLong_AsLongLong(PyList_GetItem(plan, i));
    if (PyErr_Occurred())
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    failed = ward_labels((Shape){batch, tokens, channels, threads},
                         (Tokens){(const void *)z, sample, token, bfloat16},
                         (const float *)weights,
                         (Ward){candidates, rounds, merges, normalized, sketch_dim, reluctance, far,
                                epsilon, shrink, least_product, places},
                         (int64_t *)labels);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(!failed);
}

static PyObject *py_merge_tokens(PyObject *self, PyObject *args)
{
    (void)self;
    long long batch, tokens, channels, sample, token, prefix, k;
    Address x, labels, counted, shares, lead, followers, into, sizes, means;
    int threads, bfloat16, keep_norms, failed;
    float largest_stretch, least;
    if (!PyArg_ParseTuple(args, SHAPE TOKENS "LKKKp(ff)(LKKK)KK", &batch, &tokens, &channels,
                          &threads, &x, &sample, &token, &bfloat16, &prefix, &labels, &counted,
                          &shares, &keep_norms, &largest_stretch, &least, &k, &lead, &followers,
                          &into, &sizes, &means))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    failed = merge_tokens(
        (Shape){batch, tokens, channels, threads},
        (Tokens){(const void *)x, sample, token, bfloat16}, prefix, (const int64_t *)labels,
        (const float *)counted, (const float *)shares,
        (Norms){keep_norms, largest_stretch, least},
        (Clusters){k, (int64_t *)lead, (int64_t *)followers, (int64_t *)into}, (float *)sizes,
        (void *)means);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(!failed);
}

static PyMethodDef methods[] = {
    {"ward_labels", py_ward_labels, METH_VARARGS, NULL},
    {"merge_tokens", py_merge_tokens, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "tpcli.pooling.backends.c.loops", NULL, -1, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_loops(void)
{
    return PyModule_Create(&definition);
}
